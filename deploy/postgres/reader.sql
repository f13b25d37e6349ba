-- A role that reads the analytics tables, runs the functions of schema analytics and does nothing else: for the page,
-- dashboards and analysts.
-- Docker compose runs this when the database is made; elsewhere, as the owner of the tables:
--   ANALYTICS_READER_PASS=... psql "$ANALYTICS_DATABASE_URL" -v ON_ERROR_STOP=1 -f deploy/postgres/reader.sql
\getenv password ANALYTICS_READER_PASS
\if :{?password}
\else
  \set password ''
\endif
SELECT :'password' = '' AS is_missing \gset
\if :is_missing
  \echo 'ANALYTICS_READER_PASS is not set: no reader is made'
  \quit
\endif
SELECT format('CREATE ROLE analytics_reader LOGIN PASSWORD %L', :'password')
WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'analytics_reader') \gexec
ALTER ROLE analytics_reader SET default_transaction_read_only = on;
ALTER ROLE analytics_reader SET statement_timeout = '30s';
GRANT USAGE ON SCHEMA public TO analytics_reader;
GRANT SELECT ON ALL TABLES IN SCHEMA public TO analytics_reader;
-- Tables that migrations make later; the schema ingest, with its dead letters, stays out of reach.
ALTER DEFAULT PRIVILEGES IN SCHEMA public GRANT SELECT ON TABLES TO analytics_reader;
-- The functions of schema analytics. Where the migrations have not run yet, they grant these rights themselves.
SELECT 'GRANT USAGE ON SCHEMA analytics TO analytics_reader' WHERE to_regnamespace('analytics') IS NOT NULL \gexec
SELECT format('GRANT EXECUTE ON FUNCTION %s TO analytics_reader', oid::regprocedure)
FROM pg_proc WHERE pronamespace = to_regnamespace('analytics') AND prosecdef \gexec
