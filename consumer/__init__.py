"""(Kafka) -> records -> events -> rows -> one transaction: rows, dead letters and next offsets, all or nothing.

pipeline  the loop: positions from the ledger, fetch, decode, write, then tell the group for lag tools
ledger    what has been settled: one line a partition, moved in the transaction of the rows it covers
writer    one transaction a batch: fence, set-based upserts, dead letters, ledger; isolates a poison row
tables    the schema, and event -> row
database  connections with every timeout spelled out, and which database errors mean what
"""
