-- Durations that differ by less than half a percent are one group: groups are few where rows are millions, and sorting
-- them is what percentiles cost. A percentile is the longest duration of its group.
CREATE FUNCTION analytics.duration_group(duration_ms double precision) RETURNS integer
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT floor(200 * ln(greatest(duration_ms, 0.001)))::integer
$$;

CREATE OR REPLACE FUNCTION analytics.endpoint_health(
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
    WITH durations AS (
        SELECT request.endpoint AS name, coalesce(request.method, '') AS verb, max(request.duration_ms) AS longest,
            sum(request.weight) AS weight
        FROM analytics.requests(since, until, organization, service, deployment) AS request
        WHERE request.duration_ms IS NOT NULL GROUP BY 1, 2, analytics.duration_group(request.duration_ms)
    ), ranked AS (
        SELECT durations.*, sum(durations.weight) OVER (
                PARTITION BY durations.name, durations.verb ORDER BY durations.longest
            ) AS up_to,
            sum(durations.weight) OVER (PARTITION BY durations.name, durations.verb) AS timed
        FROM durations
    ), slow AS (
        SELECT ranked.name, ranked.verb, min(ranked.longest) FILTER (WHERE ranked.up_to >= 0.5 * ranked.timed) AS p50,
            min(ranked.longest) FILTER (WHERE ranked.up_to >= 0.95 * ranked.timed) AS p95,
            min(ranked.longest) FILTER (WHERE ranked.up_to >= 0.99 * ranked.timed) AS p99
        FROM ranked GROUP BY 1, 2
    ), by_person AS (
        SELECT request.endpoint AS name, request.method AS verb, request.user_id, sum(request.weight) AS weight,
            sum(request.weight) FILTER (WHERE request.status_code >= 500) AS failed,
            sum(request.weight) FILTER (WHERE request.status_code BETWEEN 400 AND 499) AS refused
        FROM analytics.requests(since, until, organization, service, deployment) AS request GROUP BY 1, 2, 3
    ), told AS (
        SELECT by_person.name, by_person.verb, sum(by_person.weight) AS weight, count(by_person.user_id) AS people,
            coalesce(sum(by_person.failed), 0) AS failed, coalesce(sum(by_person.refused), 0) AS refused
        FROM by_person GROUP BY 1, 2 HAVING analytics.hidden_below(count(by_person.user_id), floor) IS NOT NULL
    )
    SELECT told.name, told.verb, told.weight, told.people, told.failed / told.weight, told.refused / told.weight,
        slow.p50, slow.p95, slow.p99
    FROM told LEFT JOIN slow ON slow.name = told.name AND slow.verb = coalesce(told.verb, '') ORDER BY 3 DESC, 1, 2;
END $$;

CREATE OR REPLACE FUNCTION analytics.requests_over_time(
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
    WITH durations AS (
        SELECT date_trunc(step, request.timestamp AT TIME ZONE zone) AS at, max(request.duration_ms) AS longest,
            sum(request.weight) AS weight, sum(request.weight) FILTER (WHERE request.duration_ms IS NOT NULL) AS timed,
            sum(request.weight) FILTER (WHERE request.status_code >= 500) AS failed
        FROM analytics.requests(since, until, organization, service, deployment) AS request
        GROUP BY 1, analytics.duration_group(request.duration_ms)
    ), ranked AS (
        SELECT durations.at, durations.longest, durations.weight, durations.failed,
            sum(durations.timed) OVER (PARTITION BY durations.at ORDER BY durations.longest) AS up_to,
            sum(durations.timed) OVER (PARTITION BY durations.at) AS timed
        FROM durations
    )
    SELECT calendar.at, coalesce(sum(ranked.weight), 0), coalesce(sum(ranked.failed), 0) / sum(ranked.weight),
        min(ranked.longest) FILTER (WHERE ranked.up_to >= 0.5 * ranked.timed),
        min(ranked.longest) FILTER (WHERE ranked.up_to >= 0.95 * ranked.timed)
    FROM generate_series(
        date_trunc(step, since AT TIME ZONE zone), (until AT TIME ZONE zone) - interval '1 microsecond',
        ('1 ' || step)::interval
    ) AS calendar (at)
    LEFT JOIN ranked ON ranked.at = calendar.at GROUP BY 1 ORDER BY 1;
END $$;

CREATE OR REPLACE FUNCTION analytics.releases(
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
    WITH durations AS (
        SELECT request.service_name AS name, request.service_version AS version, max(request.duration_ms) AS longest,
            sum(request.weight) AS weight
        FROM analytics.requests(since, until, organization, service, deployment) AS request
        WHERE request.duration_ms IS NOT NULL AND request.service_name IS NOT NULL
            AND request.service_version IS NOT NULL
        GROUP BY 1, 2, analytics.duration_group(request.duration_ms)
    ), ranked AS (
        SELECT durations.*, sum(durations.weight) OVER (
                PARTITION BY durations.name, durations.version ORDER BY durations.longest
            ) AS up_to,
            sum(durations.weight) OVER (PARTITION BY durations.name, durations.version) AS timed
        FROM durations
    ), slow AS (
        SELECT ranked.name, ranked.version, min(ranked.longest) FILTER (WHERE ranked.up_to >= 0.95 * ranked.timed) AS p95
        FROM ranked GROUP BY 1, 2
    ), by_person AS (
        SELECT request.service_name AS name, request.service_version AS version, request.user_id,
            min(request.timestamp) AS first_at, max(request.timestamp) AS last_at, sum(request.weight) AS weight,
            sum(request.weight) FILTER (WHERE request.status_code >= 500) AS failed
        FROM analytics.requests(since, until, organization, service, deployment) AS request
        WHERE request.service_name IS NOT NULL AND request.service_version IS NOT NULL GROUP BY 1, 2, 3
    ), released AS (
        SELECT by_person.name, by_person.version, min(by_person.first_at) AS first_at, max(by_person.last_at) AS last_at,
            sum(by_person.weight) AS requests, count(by_person.user_id) AS people,
            coalesce(sum(by_person.failed), 0) / sum(by_person.weight) AS errors
        FROM by_person GROUP BY 1, 2 HAVING analytics.hidden_below(count(by_person.user_id), floor) IS NOT NULL
    )
    SELECT released.name, released.version, released.first_at, released.last_at, released.requests, released.people,
        released.errors, slow.p95, lag(released.version) OVER in_order, lag(released.errors) OVER in_order,
        lag(slow.p95) OVER in_order
    FROM released LEFT JOIN slow ON slow.name = released.name AND slow.version = released.version
    WINDOW in_order AS (PARTITION BY released.name ORDER BY released.first_at, released.version) ORDER BY 1, 3, 2;
END $$;

CREATE OR REPLACE FUNCTION analytics.overview(
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
    WITH by_person AS (
        SELECT event.source, event.user_id, sum(event.weight) AS weight
        FROM analytics.activity(since, until, organization, service, deployment) AS event GROUP BY 1, 2
    ), counted AS (
        SELECT count(DISTINCT by_person.user_id) AS people, coalesce(sum(by_person.weight), 0) AS events,
            coalesce(sum(by_person.weight) FILTER (WHERE by_person.source = 'feature_usage'), 0) AS feature_uses,
            coalesce(sum(by_person.weight) FILTER (WHERE by_person.source = 'model_usage'), 0) AS model_calls
        FROM by_person
    ), durations AS (
        SELECT max(request.duration_ms) AS longest, sum(request.weight) AS weight,
            sum(request.weight) FILTER (WHERE request.duration_ms IS NOT NULL) AS timed,
            sum(request.weight) FILTER (WHERE request.status_code >= 500) AS failed
        FROM analytics.requests(since, until, organization, service, deployment) AS request
        GROUP BY analytics.duration_group(request.duration_ms)
    ), ranked AS (
        SELECT durations.longest, durations.weight, durations.failed,
            sum(durations.timed) OVER (ORDER BY durations.longest) AS up_to, sum(durations.timed) OVER () AS timed
        FROM durations
    ), answered AS (
        SELECT coalesce(sum(ranked.weight), 0) AS requests, coalesce(sum(ranked.failed), 0) / sum(ranked.weight) AS errors,
            min(ranked.longest) FILTER (WHERE ranked.up_to >= 0.95 * ranked.timed) AS p95
        FROM ranked
    )
    SELECT analytics.hidden_below(counted.people, analytics.floored(smallest_group)), counted.events,
        answered.requests, answered.errors, answered.p95, counted.feature_uses, counted.model_calls
    FROM counted CROSS JOIN answered;
END $$;
