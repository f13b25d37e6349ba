CREATE FUNCTION analytics.feature_adoption(
    since timestamptz, until timestamptz, zone text DEFAULT 'UTC', organization text DEFAULT NULL,
    service text DEFAULT NULL, deployment text DEFAULT NULL, smallest_group integer DEFAULT NULL
) RETURNS TABLE (
    feature text, uses double precision, people bigint, adoption double precision, repeated double precision
)
LANGUAGE plpgsql STABLE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp SET plan_cache_mode = force_custom_plan SET jit = off SET work_mem = '32MB' AS $$
#variable_conflict use_variable
DECLARE
    floor integer := analytics.floored(smallest_group);
    everybody bigint;
BEGIN
    SELECT count(*) INTO everybody FROM (
        SELECT event.user_id FROM analytics.activity(since, until, organization, service, deployment) AS event
        WHERE event.user_id IS NOT NULL GROUP BY 1
    ) AS people;
    RETURN QUERY
    WITH used AS (
        SELECT event.feature_name, event.user_id, sum(event.weight) AS uses,
            count(DISTINCT (event.timestamp AT TIME ZONE zone)::date) AS days
        FROM public.feature_usage AS event
        WHERE event.timestamp >= since AND event.timestamp < until
            AND (organization IS NULL OR event.organization_id = organization)
            AND (service IS NULL OR event.service_name = service)
            AND (deployment IS NULL OR event.deployment_type = deployment)
        GROUP BY 1, 2
    )
    SELECT used.feature_name::text, sum(used.uses), count(used.user_id), count(used.user_id)::double precision / nullif(everybody, 0),
        analytics.hidden_below(count(used.user_id) FILTER (WHERE used.days > 1), floor)::double precision
            / nullif(count(used.user_id), 0)
    FROM used GROUP BY 1
    HAVING analytics.hidden_below(count(used.user_id), floor) IS NOT NULL ORDER BY 3 DESC, 2 DESC, 1;
END $$;

COMMENT ON FUNCTION analytics.feature_adoption IS
    'Uses of each feature, its people, their share of all people in the range, and who came back on another day';

CREATE FUNCTION analytics.organizations(
    since timestamptz, until timestamptz, zone text DEFAULT 'UTC', organization text DEFAULT NULL,
    service text DEFAULT NULL, deployment text DEFAULT NULL, smallest_group integer DEFAULT NULL
) RETURNS TABLE (
    organization_id text, people bigint, events double precision, requests double precision,
    feature_uses double precision, model_calls double precision, active_days bigint, last_day date
)
LANGUAGE plpgsql STABLE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp SET plan_cache_mode = force_custom_plan SET jit = off SET work_mem = '32MB' AS $$
#variable_conflict use_variable
DECLARE
    floor integer := analytics.floored(smallest_group);
BEGIN
    RETURN QUERY
    SELECT event.organization_id, count(DISTINCT event.user_id), sum(event.weight),
        coalesce(sum(event.weight) FILTER (WHERE event.source = 'endpoint_usage'), 0),
        coalesce(sum(event.weight) FILTER (WHERE event.source = 'feature_usage'), 0),
        coalesce(sum(event.weight) FILTER (WHERE event.source = 'model_usage'), 0),
        count(DISTINCT (event.timestamp AT TIME ZONE zone)::date), max((event.timestamp AT TIME ZONE zone)::date)
    FROM analytics.activity(since, until, organization, service, deployment) AS event
    WHERE event.organization_id IS NOT NULL GROUP BY 1
    HAVING count(DISTINCT event.user_id) >= floor ORDER BY 3 DESC, 1;
END $$;

COMMENT ON FUNCTION analytics.organizations IS 'What each organization did; those with too few known people are left out';

CREATE FUNCTION analytics.models(
    since timestamptz, until timestamptz, organization text DEFAULT NULL, service text DEFAULT NULL,
    deployment text DEFAULT NULL, smallest_group integer DEFAULT NULL
) RETURNS TABLE (
    provider text, model text, operation text, calls double precision, people bigint, input_tokens double precision,
    output_tokens double precision, failed double precision, p50_ms double precision, p95_ms double precision
)
LANGUAGE plpgsql STABLE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp SET plan_cache_mode = force_custom_plan SET jit = off SET work_mem = '32MB' AS $$
#variable_conflict use_variable
DECLARE
    floor integer := analytics.floored(smallest_group);
BEGIN
    RETURN QUERY
    WITH called AS (
        SELECT event.provider, event.model, event.operation, event.user_id, event.weight, event.input_tokens,
            event.output_tokens, event.error_type, event.duration_ms,
            sum(event.weight) FILTER (WHERE event.duration_ms IS NOT NULL) OVER (
                PARTITION BY event.provider, event.model, event.operation ORDER BY event.duration_ms
                ROWS UNBOUNDED PRECEDING
            ) AS up_to,
            sum(event.weight) FILTER (WHERE event.duration_ms IS NOT NULL) OVER (
                PARTITION BY event.provider, event.model, event.operation
            ) AS timed
        FROM public.model_usage AS event
        WHERE event.timestamp >= since AND event.timestamp < until
            AND (organization IS NULL OR event.organization_id = organization)
            AND (service IS NULL OR event.service_name = service)
            AND (deployment IS NULL OR event.deployment_type = deployment)
    )
    SELECT called.provider::text, called.model::text, called.operation::text, sum(called.weight),
        count(DISTINCT called.user_id), sum(called.input_tokens * called.weight),
        sum(called.output_tokens * called.weight),
        coalesce(sum(called.weight) FILTER (WHERE called.error_type IS NOT NULL), 0) / sum(called.weight),
        min(called.duration_ms) FILTER (WHERE called.up_to >= 0.5 * called.timed),
        min(called.duration_ms) FILTER (WHERE called.up_to >= 0.95 * called.timed)
    FROM called GROUP BY 1, 2, 3
    HAVING analytics.hidden_below(count(DISTINCT called.user_id), floor) IS NOT NULL ORDER BY 4 DESC, 1, 2, 3;
END $$;

COMMENT ON FUNCTION analytics.models IS
    'Calls by provider, model and operation. An agent''s operation repeats the tokens of the calls inside it';
