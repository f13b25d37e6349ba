CREATE OR REPLACE FUNCTION analytics.endpoint_health(
    since timestamptz, until timestamptz, organization text DEFAULT NULL, service text DEFAULT NULL,
    deployment text DEFAULT NULL, smallest_group integer DEFAULT NULL
) RETURNS TABLE (
    endpoint text, method text, requests double precision, people bigint, server_errors double precision,
    client_errors double precision, p50_ms double precision, p95_ms double precision, p99_ms double precision
)
LANGUAGE plpgsql STABLE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp SET plan_cache_mode = force_custom_plan SET jit = off SET work_mem = '64MB' AS $$
#variable_conflict use_variable
DECLARE
    floor integer := analytics.floored(smallest_group);
BEGIN
    RETURN QUERY
    WITH ranked AS (
        SELECT groups.*,
            sum(groups.weight) OVER (PARTITION BY groups.name, groups.part ORDER BY groups.duration_group) AS up_to,
            sum(groups.weight) OVER (PARTITION BY groups.name, groups.part) AS timed
        FROM analytics.durations(
            since, until, 'range', 'UTC', 'endpoint_usage', 'name', false, organization, service, deployment
        ) AS groups
    ), slow AS (
        SELECT ranked.name, ranked.part, min(ranked.longest) FILTER (WHERE ranked.up_to >= 0.5 * ranked.timed) AS p50,
            min(ranked.longest) FILTER (WHERE ranked.up_to >= 0.95 * ranked.timed) AS p95,
            min(ranked.longest) FILTER (WHERE ranked.up_to >= 0.99 * ranked.timed) AS p99
        FROM ranked GROUP BY 1, 2
    ), known AS (
        SELECT person.name, person.part, sum(bit_count(person.bits))::bigint AS people
        FROM analytics.people_seen(
            since, until, 'range', 'UTC', '{endpoint_usage}', 'name', false, false, organization, service, deployment
        ) AS person GROUP BY 1, 2
    )
    SELECT answered.name, answered.part, answered.weight, coalesce(known.people, 0),
        coalesce(answered.failed, 0) / answered.weight, coalesce(answered.refused, 0) / answered.weight,
        slow.p50, slow.p95, slow.p99
    FROM analytics.sums(
        since, until, 'range', 'UTC', '{endpoint_usage}', 'name', false, organization, service, deployment
    ) AS answered
    LEFT JOIN known ON known.name = answered.name AND known.part IS NOT DISTINCT FROM answered.part
    LEFT JOIN slow ON slow.name = answered.name AND slow.part IS NOT DISTINCT FROM answered.part
    WHERE analytics.hidden_below(coalesce(known.people, 0), floor) IS NOT NULL ORDER BY 3 DESC, 1, 2;
END $$;

CREATE OR REPLACE FUNCTION analytics.requests_over_time(
    since timestamptz, until timestamptz, step text DEFAULT 'day', zone text DEFAULT 'UTC',
    organization text DEFAULT NULL, service text DEFAULT NULL, deployment text DEFAULT NULL
) RETURNS TABLE (
    period timestamp, requests double precision, server_errors double precision, p50_ms double precision,
    p95_ms double precision
)
LANGUAGE plpgsql STABLE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp SET plan_cache_mode = force_custom_plan SET jit = off SET work_mem = '64MB' AS $$
#variable_conflict use_variable
BEGIN
    IF step NOT IN ('hour', 'day', 'week', 'month') THEN
        RAISE invalid_parameter_value USING MESSAGE = 'step must be hour, day, week or month';
    END IF;
    RETURN QUERY
    WITH ranked AS (
        SELECT groups.*, sum(groups.weight) OVER (PARTITION BY groups.at ORDER BY groups.duration_group) AS up_to,
            sum(groups.weight) OVER (PARTITION BY groups.at) AS timed
        FROM analytics.durations(
            since, until, step, zone, 'endpoint_usage', 'nothing', false, organization, service, deployment
        ) AS groups
    ), slow AS (
        SELECT ranked.at, min(ranked.longest) FILTER (WHERE ranked.up_to >= 0.5 * ranked.timed) AS p50,
            min(ranked.longest) FILTER (WHERE ranked.up_to >= 0.95 * ranked.timed) AS p95
        FROM ranked GROUP BY 1
    )
    SELECT calendar.at, coalesce(sums.weight, 0), coalesce(sums.failed, 0) / sums.weight, slow.p50, slow.p95
    FROM generate_series(
        date_trunc(step, since AT TIME ZONE zone), (until AT TIME ZONE zone) - interval '1 microsecond',
        ('1 ' || step)::interval
    ) AS calendar (at)
    LEFT JOIN analytics.sums(
        since, until, step, zone, '{endpoint_usage}', 'nothing', false, organization, service, deployment
    ) AS sums ON sums.at = calendar.at
    LEFT JOIN slow ON slow.at = calendar.at ORDER BY 1;
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
SET search_path = pg_catalog, pg_temp SET plan_cache_mode = force_custom_plan SET jit = off SET work_mem = '64MB' AS $$
#variable_conflict use_variable
DECLARE
    floor integer := analytics.floored(smallest_group);
BEGIN
    RETURN QUERY
    WITH groups AS (
        SELECT each.service_name AS name, each.service_version AS version, each.duration_group,
            max(each.longest) AS longest, sum(each.weight) AS weight
        FROM analytics.durations(
            since, until, 'range', 'UTC', 'endpoint_usage', 'release', false, organization, service, deployment
        ) AS each
        WHERE each.service_name IS NOT NULL AND each.service_version IS NOT NULL GROUP BY 1, 2, 3
    ), ranked AS (
        SELECT groups.*,
            sum(groups.weight) OVER (PARTITION BY groups.name, groups.version ORDER BY groups.duration_group) AS up_to,
            sum(groups.weight) OVER (PARTITION BY groups.name, groups.version) AS timed
        FROM groups
    ), slow AS (
        SELECT ranked.name, ranked.version, min(ranked.longest) FILTER (WHERE ranked.up_to >= 0.95 * ranked.timed) AS p95
        FROM ranked GROUP BY 1, 2
    ), known AS (
        SELECT by_chunk.name, by_chunk.version, sum(bit_count(by_chunk.bits))::bigint AS people
        FROM (
            SELECT person.service_name AS name, person.service_version AS version, bit_or(person.bits) AS bits
            FROM analytics.people_seen(
                since, until, 'range', 'UTC', '{endpoint_usage}', 'release', false, false, organization, service, deployment
            ) AS person GROUP BY 1, 2, person.chunk
        ) AS by_chunk GROUP BY 1, 2
    ), released AS (
        SELECT sums.service_name AS name, sums.service_version AS version, min(sums.first_at) AS first_at,
            max(sums.last_at) AS last_at, sum(sums.weight) AS requests, coalesce(min(known.people), 0) AS people,
            coalesce(sum(sums.failed), 0) / sum(sums.weight) AS errors, min(slow.p95) AS p95
        FROM analytics.sums(
            since, until, 'range', 'UTC', '{endpoint_usage}', 'release', false, organization, service, deployment
        ) AS sums
        LEFT JOIN known ON known.name = sums.service_name AND known.version = sums.service_version
        LEFT JOIN slow ON slow.name = sums.service_name AND slow.version = sums.service_version
        WHERE sums.service_name IS NOT NULL AND sums.service_version IS NOT NULL GROUP BY 1, 2
        HAVING analytics.hidden_below(coalesce(min(known.people), 0), floor) IS NOT NULL
    )
    SELECT released.name, released.version, released.first_at, released.last_at, released.requests, released.people,
        released.errors, released.p95, lag(released.version) OVER in_order, lag(released.errors) OVER in_order,
        lag(released.p95) OVER in_order
    FROM released WINDOW in_order AS (PARTITION BY released.name ORDER BY released.first_at, released.version)
    ORDER BY 1, 3, 2;
END $$;

CREATE OR REPLACE FUNCTION analytics.overview(
    since timestamptz, until timestamptz, organization text DEFAULT NULL, service text DEFAULT NULL,
    deployment text DEFAULT NULL, smallest_group integer DEFAULT NULL
) RETURNS TABLE (
    people bigint, events double precision, requests double precision, server_errors double precision,
    p95_ms double precision, feature_uses double precision, model_calls double precision
)
LANGUAGE plpgsql STABLE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp SET plan_cache_mode = force_custom_plan SET jit = off SET work_mem = '64MB' AS $$
#variable_conflict use_variable
BEGIN
    RETURN QUERY
    WITH ranked AS (
        SELECT groups.*, sum(groups.weight) OVER (ORDER BY groups.duration_group) AS up_to,
            sum(groups.weight) OVER () AS timed
        FROM analytics.durations(
            since, until, 'range', 'UTC', 'endpoint_usage', 'nothing', false, organization, service, deployment
        ) AS groups
    ), slow AS (
        SELECT min(ranked.longest) FILTER (WHERE ranked.up_to >= 0.95 * ranked.timed) AS p95 FROM ranked
    ), counted AS (
        SELECT coalesce(sum(bit_count(person.bits)), 0)::bigint AS people
        FROM analytics.people_seen(
            since, until, 'range', 'UTC', '{""}', 'nothing', false, false, organization, service, deployment
        ) AS person
    ), summed AS (
        SELECT coalesce(sum(sums.weight), 0) AS events,
            sum(sums.weight) FILTER (WHERE sums.source = 'endpoint_usage') AS requests,
            coalesce(sum(sums.failed) FILTER (WHERE sums.source = 'endpoint_usage'), 0) AS failed,
            coalesce(sum(sums.weight) FILTER (WHERE sums.source = 'feature_usage'), 0) AS feature_uses,
            coalesce(sum(sums.weight) FILTER (WHERE sums.source = 'model_usage'), 0) AS model_calls
        FROM analytics.sums(
            since, until, 'range', 'UTC', '{user_activity,endpoint_usage,feature_usage,model_usage}', 'nothing', false,
            organization, service, deployment
        ) AS sums
    )
    SELECT analytics.hidden_below(counted.people, analytics.floored(smallest_group)), summed.events,
        coalesce(summed.requests, 0), summed.failed / summed.requests, slow.p95, summed.feature_uses, summed.model_calls
    FROM counted CROSS JOIN summed CROSS JOIN slow;
END $$;

CREATE OR REPLACE FUNCTION analytics.choices(since timestamptz, until timestamptz) RETURNS TABLE (kind text, value text)
LANGUAGE plpgsql STABLE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp SET plan_cache_mode = force_custom_plan SET jit = off SET work_mem = '64MB' AS $$
#variable_conflict use_variable
BEGIN
    RETURN QUERY
    WITH told AS MATERIALIZED (
        SELECT sums.service_name, sums.deployment_type
        FROM analytics.sums(
            since, until, 'range', 'UTC', '{user_activity,endpoint_usage,feature_usage,model_usage}', 'release', false,
            NULL, NULL, NULL
        ) AS sums GROUP BY 1, 2
    )
    (SELECT DISTINCT 'service', told.service_name FROM told WHERE told.service_name IS NOT NULL ORDER BY 2 LIMIT 200)
    UNION ALL
    (
        SELECT DISTINCT 'deployment', told.deployment_type FROM told WHERE told.deployment_type IS NOT NULL
        ORDER BY 2 LIMIT 200
    );
END $$;
