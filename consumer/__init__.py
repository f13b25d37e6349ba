"""(Kafka) -> records -> events -> rows -> one transaction: rows, dead letters and next offsets, all or nothing.

pipeline    the loop: positions from the ledger, fetch, decode, write, then tell the group for lag tools; truncated
            logs, lag and readiness beside it
store       the schema, the ledger, upserts, partitions, dead letters, erasures, retention; connections, and what each
            error of the database means
operations  what the operator's commands do
rebuild     tables filled beside the live ones, compared, and swapped in
cli         the commands, by subject
"""
