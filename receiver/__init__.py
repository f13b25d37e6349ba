"""bytes -> request -> spans -> events -> records -> (Kafka): the reply only after the brokers' acknowledgement.

serve      listeners, keys, limits and turns; the export on one screen, and the one table of replies
decode     request bytes -> spans, each still bytes
translate  span -> event, ignored, or rejected with a reason, as mapping.py says. reference.py and its parts define the
           result; engine.py chooses between reference and native engine; explain.py shows each step for one file
publish    records -> acknowledgements; the records of all requests share batches
"""
