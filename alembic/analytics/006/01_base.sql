-- The owner's settings, and what the other functions are made of. No reader may run these helpers.
CREATE TABLE analytics.settings (
    only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    smallest_group integer NOT NULL DEFAULT 5 CHECK (smallest_group >= 1)
);

INSERT INTO analytics.settings DEFAULT VALUES;

COMMENT ON TABLE analytics.settings IS 'One row of limits that only the owner of the schema may change';

COMMENT ON COLUMN analytics.settings.only_row IS 'Always true: there is one row';

COMMENT ON COLUMN analytics.settings.smallest_group IS
    'A group of fewer people is hidden; a reader may ask for more, never for less';

CREATE FUNCTION analytics.floored(smallest_group integer) RETURNS integer LANGUAGE sql STABLE PARALLEL SAFE AS $$
    SELECT greatest($1, limits.smallest_group, 1) FROM analytics.settings AS limits
$$;

CREATE FUNCTION analytics.hidden_below(people bigint, floor integer) RETURNS bigint LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT CASE WHEN people = 0 OR people >= floor THEN people END
$$;

-- Every row of the four tables in a time range. Without SET and SECURITY DEFINER, so that Postgres inlines it.
CREATE FUNCTION analytics.activity(
    since timestamptz, until timestamptz, organization text, service text, deployment text
) RETURNS TABLE (
    source text, user_id text, organization_id text, "timestamp" timestamptz, service_name text, deployment_type text,
    weight double precision
) LANGUAGE sql STABLE PARALLEL SAFE AS $$
    SELECT 'user_activity'::text, event.user_id::text, event.organization_id::text, event.timestamp,
        event.service_name::text, event.deployment_type::text, event.weight
    FROM public.user_activity AS event
    WHERE event.timestamp >= $1 AND event.timestamp < $2 AND ($3 IS NULL OR event.organization_id = $3)
        AND ($4 IS NULL OR event.service_name = $4) AND ($5 IS NULL OR event.deployment_type = $5)
    UNION ALL
    SELECT 'endpoint_usage'::text, event.user_id::text, event.organization_id::text, event.timestamp,
        event.service_name::text, event.deployment_type::text, event.weight
    FROM public.endpoint_usage AS event
    WHERE event.timestamp >= $1 AND event.timestamp < $2 AND ($3 IS NULL OR event.organization_id = $3)
        AND ($4 IS NULL OR event.service_name = $4) AND ($5 IS NULL OR event.deployment_type = $5)
    UNION ALL
    SELECT 'feature_usage'::text, event.user_id::text, event.organization_id::text, event.timestamp,
        event.service_name::text, event.deployment_type::text, event.weight
    FROM public.feature_usage AS event
    WHERE event.timestamp >= $1 AND event.timestamp < $2 AND ($3 IS NULL OR event.organization_id = $3)
        AND ($4 IS NULL OR event.service_name = $4) AND ($5 IS NULL OR event.deployment_type = $5)
    UNION ALL
    SELECT 'model_usage'::text, event.user_id::text, event.organization_id::text, event.timestamp,
        event.service_name::text, event.deployment_type::text, event.weight
    FROM public.model_usage AS event
    WHERE event.timestamp >= $1 AND event.timestamp < $2 AND ($3 IS NULL OR event.organization_id = $3)
        AND ($4 IS NULL OR event.service_name = $4) AND ($5 IS NULL OR event.deployment_type = $5)
$$;

CREATE FUNCTION analytics.requests(
    since timestamptz, until timestamptz, organization text, service text, deployment text
) RETURNS TABLE (
    endpoint text, method text, user_id text, status_code integer, duration_ms double precision,
    "timestamp" timestamptz, service_name text, service_version text, weight double precision
) LANGUAGE sql STABLE PARALLEL SAFE AS $$
    SELECT event.endpoint::text, event.method::text, event.user_id::text, event.status_code, event.duration_ms,
        event.timestamp, event.service_name::text, event.service_version::text, event.weight
    FROM public.endpoint_usage AS event
    WHERE event.timestamp >= $1 AND event.timestamp < $2 AND ($3 IS NULL OR event.organization_id = $3)
        AND ($4 IS NULL OR event.service_name = $4) AND ($5 IS NULL OR event.deployment_type = $5)
$$;
