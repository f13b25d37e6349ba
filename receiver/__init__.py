"""bytes -> request -> spans -> events -> records -> (Kafka): the reply only after the brokers' acknowledgement.

server     gRPC options, health service, certificates, start and stop
auth       keys, compared before anything of a body is read
budget     which bodies may arrive, and how much memory all requests may hold
service    Export, and the one table outcome -> reply
spans      request bytes -> spans, each still bytes
records    spans -> records: by fast_path, the short way of what follows, where that is sure; pieces are what it joins,
           and speedups repeats it in C
translate  span -> event, ignored, or rejected with a reason; reading, endpoint, metadata and privacy are its parts
publisher  records -> acknowledgements, coalesced over all requests
explain    the same translation, telling what it does
"""
