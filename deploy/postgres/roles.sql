-- Roles with no more rights than they need. Run as the owner of the tables, after `alembic upgrade head`:
--   ANALYTICS_CONSUMER_PASS=... ANALYTICS_OPERATOR_PASS=... \
--     psql "$ANALYTICS_DATABASE_URL" -v ON_ERROR_STOP=1 -f deploy/postgres/roles.sql
--
-- owner                the role of this connection: migrates, and rebuilds tables
-- analytics_consumer   the service: inserts, updates and selects; deletes only what erasure and retention ask for
-- analytics_operator   the commands but `rebuild`: as the consumer, and may move the ledger
-- analytics_reader     dashboards and analysts: see reader.sql
\getenv consumer_password ANALYTICS_CONSUMER_PASS
\getenv operator_password ANALYTICS_OPERATOR_PASS
SELECT format('CREATE ROLE %I LOGIN PASSWORD %L', name, password)
FROM (VALUES ('analytics_consumer', :'consumer_password'), ('analytics_operator', :'operator_password'))
    AS wanted (name, password)
WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = name) \gexec

SELECT format('GRANT CONNECT, TEMPORARY ON DATABASE %I TO analytics_consumer, analytics_operator', current_database()) \gexec
GRANT USAGE ON SCHEMA public, ingest, partitions TO analytics_consumer, analytics_operator;
-- Partitions are made and dropped by functions that run as the owner; a new one gets its table's grants.
GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA partitions TO analytics_consumer, analytics_operator;
GRANT EXECUTE ON FUNCTION ingest.attach_partition, ingest.drop_partition TO analytics_consumer, analytics_operator;
-- Closed days are added up by functions that run as the owner; whoever changes rows marks their days.
GRANT EXECUTE ON FUNCTION ingest.mark_days, ingest.days_to_roll_up, ingest.number_people, ingest.roll_up, ingest.forget,
    ingest.forget_unseen, ingest.wrong_days TO analytics_consumer, analytics_operator;
GRANT SELECT ON public.alembic_version TO analytics_consumer, analytics_operator;
GRANT SELECT, INSERT, UPDATE, DELETE ON public.user_activity, public.endpoint_usage, public.feature_usage, public.model_usage
    TO analytics_consumer, analytics_operator;
GRANT SELECT, INSERT, UPDATE, DELETE ON ingest.dead_letters TO analytics_consumer, analytics_operator;
GRANT SELECT, INSERT, UPDATE ON ingest.partition_offsets, ingest.suppressions, ingest.erasures, ingest.topic_ends
    TO analytics_consumer, analytics_operator;
GRANT SELECT, INSERT ON ingest.gaps, ingest.ledger_history TO analytics_consumer, analytics_operator;
GRANT USAGE ON ALL SEQUENCES IN SCHEMA ingest TO analytics_consumer, analytics_operator;
GRANT DELETE ON ingest.partition_offsets, ingest.gaps TO analytics_operator;
GRANT UPDATE ON ingest.gaps TO analytics_operator;
