CREATE FUNCTION analytics.endpoint_health(
    since timestamptz, until timestamptz, organization text DEFAULT NULL, service text DEFAULT NULL,
    deployment text DEFAULT NULL, smallest_group integer DEFAULT NULL
) RETURNS TABLE (
    endpoint text, method text, requests double precision, people bigint, server_errors double precision,
    client_errors double precision, p50_ms double precision, p95_ms double precision, p99_ms double precision
)
LANGUAGE plpgsql STABLE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp SET plan_cache_mode = force_custom_plan SET jit = off SET work_mem = '32MB' AS $$
#variable_conflict use_variable
DECLARE
    floor integer := analytics.floored(smallest_group);
BEGIN
    RETURN QUERY
    WITH answered AS (
        SELECT request.*,
            sum(request.weight) FILTER (WHERE request.duration_ms IS NOT NULL) OVER (
                PARTITION BY request.endpoint, request.method ORDER BY request.duration_ms ROWS UNBOUNDED PRECEDING
            ) AS up_to,
            sum(request.weight) FILTER (WHERE request.duration_ms IS NOT NULL) OVER (
                PARTITION BY request.endpoint, request.method
            ) AS timed
        FROM analytics.requests(since, until, organization, service, deployment) AS request
    )
    SELECT answered.endpoint, answered.method, sum(answered.weight), count(DISTINCT answered.user_id),
        coalesce(sum(answered.weight) FILTER (WHERE answered.status_code >= 500), 0) / sum(answered.weight),
        coalesce(sum(answered.weight) FILTER (WHERE answered.status_code BETWEEN 400 AND 499), 0) / sum(answered.weight),
        min(answered.duration_ms) FILTER (WHERE answered.up_to >= 0.5 * answered.timed),
        min(answered.duration_ms) FILTER (WHERE answered.up_to >= 0.95 * answered.timed),
        min(answered.duration_ms) FILTER (WHERE answered.up_to >= 0.99 * answered.timed)
    FROM answered GROUP BY 1, 2
    HAVING analytics.hidden_below(count(DISTINCT answered.user_id), floor) IS NOT NULL ORDER BY 3 DESC, 1, 2;
END $$;

COMMENT ON FUNCTION analytics.endpoint_health IS
    'Requests, shares of errors and percentiles of duration by endpoint; one with too few known people is left out';

CREATE FUNCTION analytics.requests_over_time(
    since timestamptz, until timestamptz, step text DEFAULT 'day', zone text DEFAULT 'UTC',
    organization text DEFAULT NULL, service text DEFAULT NULL, deployment text DEFAULT NULL
) RETURNS TABLE (
    period timestamp, requests double precision, server_errors double precision, p50_ms double precision,
    p95_ms double precision
)
LANGUAGE plpgsql STABLE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp SET plan_cache_mode = force_custom_plan SET jit = off SET work_mem = '32MB' AS $$
#variable_conflict use_variable
BEGIN
    IF step NOT IN ('hour', 'day', 'week', 'month') THEN
        RAISE invalid_parameter_value USING MESSAGE = 'step must be hour, day, week or month';
    END IF;
    RETURN QUERY
    WITH placed AS (
        SELECT date_trunc(step, request.timestamp AT TIME ZONE zone) AS at, request.status_code, request.duration_ms,
            request.weight
        FROM analytics.requests(since, until, organization, service, deployment) AS request
    ), answered AS (
        SELECT placed.*,
            sum(placed.weight) FILTER (WHERE placed.duration_ms IS NOT NULL) OVER (
                PARTITION BY placed.at ORDER BY placed.duration_ms ROWS UNBOUNDED PRECEDING
            ) AS up_to,
            sum(placed.weight) FILTER (WHERE placed.duration_ms IS NOT NULL) OVER (PARTITION BY placed.at) AS timed
        FROM placed
    )
    SELECT calendar.at, coalesce(sum(answered.weight), 0),
        coalesce(sum(answered.weight) FILTER (WHERE answered.status_code >= 500), 0) / sum(answered.weight),
        min(answered.duration_ms) FILTER (WHERE answered.up_to >= 0.5 * answered.timed),
        min(answered.duration_ms) FILTER (WHERE answered.up_to >= 0.95 * answered.timed)
    FROM generate_series(
        date_trunc(step, since AT TIME ZONE zone), (until AT TIME ZONE zone) - interval '1 microsecond',
        ('1 ' || step)::interval
    ) AS calendar (at)
    LEFT JOIN answered ON answered.at = calendar.at GROUP BY 1 ORDER BY 1;
END $$;

COMMENT ON FUNCTION analytics.requests_over_time IS 'Requests, share of server errors and percentiles by hour, day, week or month';

CREATE FUNCTION analytics.releases(
    since timestamptz, until timestamptz, organization text DEFAULT NULL, service text DEFAULT NULL,
    deployment text DEFAULT NULL, smallest_group integer DEFAULT NULL
) RETURNS TABLE (
    service_name text, service_version text, first_seen timestamptz, last_seen timestamptz,
    requests double precision, people bigint, server_errors double precision, p95_ms double precision,
    previous_version text, server_errors_before double precision, p95_ms_before double precision
)
LANGUAGE plpgsql STABLE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp SET plan_cache_mode = force_custom_plan SET jit = off SET work_mem = '32MB' AS $$
#variable_conflict use_variable
DECLARE
    floor integer := analytics.floored(smallest_group);
BEGIN
    RETURN QUERY
    WITH answered AS (
        SELECT request.*,
            sum(request.weight) FILTER (WHERE request.duration_ms IS NOT NULL) OVER (
                PARTITION BY request.service_name, request.service_version ORDER BY request.duration_ms
                ROWS UNBOUNDED PRECEDING
            ) AS up_to,
            sum(request.weight) FILTER (WHERE request.duration_ms IS NOT NULL) OVER (
                PARTITION BY request.service_name, request.service_version
            ) AS timed
        FROM analytics.requests(since, until, organization, service, deployment) AS request
        WHERE request.service_name IS NOT NULL AND request.service_version IS NOT NULL
    ), released AS (
        SELECT answered.service_name AS name, answered.service_version AS version, min(answered.timestamp) AS first_at,
            max(answered.timestamp) AS last_at, sum(answered.weight) AS requests, count(DISTINCT answered.user_id) AS people,
            coalesce(sum(answered.weight) FILTER (WHERE answered.status_code >= 500), 0) / sum(answered.weight) AS errors,
            min(answered.duration_ms) FILTER (WHERE answered.up_to >= 0.95 * answered.timed) AS p95
        FROM answered GROUP BY 1, 2
        HAVING analytics.hidden_below(count(DISTINCT answered.user_id), floor) IS NOT NULL
    )
    SELECT released.name, released.version, released.first_at, released.last_at, released.requests, released.people,
        released.errors, released.p95, lag(released.version) OVER in_order, lag(released.errors) OVER in_order,
        lag(released.p95) OVER in_order
    FROM released WINDOW in_order AS (PARTITION BY released.name ORDER BY released.first_at, released.version)
    ORDER BY 1, 3, 2;
END $$;

COMMENT ON FUNCTION analytics.releases IS 'Requests by service_version in order of appearance, each beside the one before';

CREATE FUNCTION analytics.overview(
    since timestamptz, until timestamptz, organization text DEFAULT NULL, service text DEFAULT NULL,
    deployment text DEFAULT NULL, smallest_group integer DEFAULT NULL
) RETURNS TABLE (
    people bigint, events double precision, requests double precision, server_errors double precision,
    p95_ms double precision, feature_uses double precision, model_calls double precision
)
LANGUAGE plpgsql STABLE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp SET plan_cache_mode = force_custom_plan SET jit = off SET work_mem = '32MB' AS $$
#variable_conflict use_variable
BEGIN
    RETURN QUERY
    WITH counted AS (
        SELECT count(DISTINCT event.user_id) AS people, coalesce(sum(event.weight), 0) AS events,
            coalesce(sum(event.weight) FILTER (WHERE event.source = 'feature_usage'), 0) AS feature_uses,
            coalesce(sum(event.weight) FILTER (WHERE event.source = 'model_usage'), 0) AS model_calls
        FROM analytics.activity(since, until, organization, service, deployment) AS event
    ), ranked AS (
        SELECT request.status_code, request.duration_ms, request.weight,
            sum(request.weight) FILTER (WHERE request.duration_ms IS NOT NULL) OVER (
                ORDER BY request.duration_ms ROWS UNBOUNDED PRECEDING
            ) AS up_to,
            sum(request.weight) FILTER (WHERE request.duration_ms IS NOT NULL) OVER () AS timed
        FROM analytics.requests(since, until, organization, service, deployment) AS request
    ), answered AS (
        SELECT coalesce(sum(ranked.weight), 0) AS requests,
            coalesce(sum(ranked.weight) FILTER (WHERE ranked.status_code >= 500), 0) / sum(ranked.weight) AS errors,
            min(ranked.duration_ms) FILTER (WHERE ranked.up_to >= 0.95 * ranked.timed) AS p95
        FROM ranked
    )
    SELECT analytics.hidden_below(counted.people, analytics.floored(smallest_group)), counted.events,
        answered.requests, answered.errors, answered.p95, counted.feature_uses, counted.model_calls
    FROM counted CROSS JOIN answered;
END $$;

COMMENT ON FUNCTION analytics.overview IS 'One line of totals for a time range';

CREATE FUNCTION analytics.choices(since timestamptz, until timestamptz) RETURNS TABLE (kind text, value text)
LANGUAGE plpgsql STABLE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp SET plan_cache_mode = force_custom_plan SET jit = off SET work_mem = '32MB' AS $$
#variable_conflict use_variable
BEGIN
    RETURN QUERY
    WITH told AS MATERIALIZED (
        SELECT event.service_name, event.deployment_type
        FROM analytics.activity(since, until, NULL, NULL, NULL) AS event GROUP BY 1, 2
    )
    (SELECT DISTINCT 'service', told.service_name FROM told WHERE told.service_name IS NOT NULL ORDER BY 2 LIMIT 200)
    UNION ALL (SELECT DISTINCT 'deployment', told.deployment_type FROM told ORDER BY 2 LIMIT 200);
END $$;

COMMENT ON FUNCTION analytics.choices IS 'Names of services and deployments in a time range, to filter by';
