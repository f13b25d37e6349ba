"""bytes -> request -> spans -> events -> records -> (Kafka): the reply only after the brokers' acknowledgement.

serve      listeners, keys, limits and turns; the export on one screen, and the one table of replies
decode     request bytes -> spans, each still bytes
translate  span -> event, ignored, or rejected with a reason, as mapping.py says. reference.py and its parts define it;
           engine.py chooses between it and the native engine; explain.py tells what it does
publish    records -> acknowledgements, coalesced over all requests
"""
