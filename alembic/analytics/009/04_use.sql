CREATE OR REPLACE FUNCTION analytics.feature_adoption(
    since timestamptz, until timestamptz, zone text DEFAULT 'UTC', organization text DEFAULT NULL,
    service text DEFAULT NULL, deployment text DEFAULT NULL, smallest_group integer DEFAULT NULL
) RETURNS TABLE (
    feature text, uses double precision, people bigint, adoption double precision, repeated double precision
)
LANGUAGE plpgsql STABLE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp SET plan_cache_mode = force_custom_plan SET jit = off SET work_mem = '64MB' AS $$
#variable_conflict use_variable
DECLARE
    floor integer := analytics.floored(smallest_group);
    everybody bigint;
BEGIN
    SELECT sum(bit_count(person.bits)) INTO everybody
    FROM analytics.people_seen(
        since, until, 'range', zone, '{""}', 'nothing', false, false, organization, service, deployment
    ) AS person;
    RETURN QUERY
    WITH by_day AS (
        SELECT person.name, person.chunk, person.at, bit_or(person.bits) AS bits
        FROM analytics.people_seen(
            since, until, 'day', zone, '{feature_usage}', 'name', false, false, organization, service, deployment
        ) AS person GROUP BY 1, 2, 3
    ), again AS (
        SELECT by_day.name, by_day.chunk, by_day.bits, by_day.bits & bit_or(by_day.bits) OVER (
                PARTITION BY by_day.name, by_day.chunk ORDER BY by_day.at ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING
            ) AS returned
        FROM by_day
    ), by_chunk AS (
        SELECT again.name, bit_count(bit_or(again.bits)) AS people,
            coalesce(bit_count(bit_or(again.returned)), 0) AS returned
        FROM again GROUP BY again.name, again.chunk
    ), used AS (
        SELECT by_chunk.name, sum(by_chunk.people)::bigint AS people, sum(by_chunk.returned)::bigint AS returned
        FROM by_chunk GROUP BY 1
    ), summed AS (
        SELECT sums.name, sum(sums.weight) AS uses
        FROM analytics.sums(
            since, until, 'range', zone, '{feature_usage}', 'name', false, organization, service, deployment
        ) AS sums GROUP BY 1
    )
    SELECT summed.name, summed.uses, coalesce(used.people, 0),
        coalesce(used.people, 0)::double precision / nullif(everybody, 0),
        analytics.hidden_below(used.returned, floor)::double precision / nullif(used.people, 0)
    FROM summed LEFT JOIN used ON used.name = summed.name
    WHERE analytics.hidden_below(coalesce(used.people, 0), floor) IS NOT NULL ORDER BY 3 DESC, 2 DESC, 1;
END $$;

CREATE OR REPLACE FUNCTION analytics.organizations(
    since timestamptz, until timestamptz, zone text DEFAULT 'UTC', organization text DEFAULT NULL,
    service text DEFAULT NULL, deployment text DEFAULT NULL, smallest_group integer DEFAULT NULL
) RETURNS TABLE (
    organization_id text, people bigint, events double precision, requests double precision,
    feature_uses double precision, model_calls double precision, active_days bigint, last_day date
)
LANGUAGE plpgsql STABLE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp SET plan_cache_mode = force_custom_plan SET jit = off SET work_mem = '64MB' AS $$
#variable_conflict use_variable
DECLARE
    floor integer := analytics.floored(smallest_group);
BEGIN
    RETURN QUERY
    WITH days AS MATERIALIZED (
        SELECT * FROM analytics.organization_days(since, until, zone, organization, service, deployment)
    ), members AS (
        SELECT days.organization_id AS id, member FROM days CROSS JOIN unnest(days.members) AS member GROUP BY 1, 2
    ), known AS (
        SELECT members.id, count(*) AS people FROM members GROUP BY 1 HAVING count(*) >= floor
    )
    SELECT days.organization_id, min(known.people), sum(days.events), coalesce(sum(days.requests), 0),
        coalesce(sum(days.feature_uses), 0), coalesce(sum(days.model_calls), 0), count(DISTINCT days.day), max(days.day)
    FROM days JOIN known ON known.id = days.organization_id GROUP BY 1 ORDER BY 3 DESC, 1;
END $$;

CREATE OR REPLACE FUNCTION analytics.models(
    since timestamptz, until timestamptz, organization text DEFAULT NULL, service text DEFAULT NULL,
    deployment text DEFAULT NULL, smallest_group integer DEFAULT NULL
) RETURNS TABLE (
    provider text, model text, operation text, calls double precision, people bigint, input_tokens double precision,
    output_tokens double precision, failed double precision, p50_ms double precision, p95_ms double precision
)
LANGUAGE plpgsql STABLE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp SET plan_cache_mode = force_custom_plan SET jit = off SET work_mem = '64MB' AS $$
#variable_conflict use_variable
DECLARE
    floor integer := analytics.floored(smallest_group);
BEGIN
    RETURN QUERY
    WITH ranked AS (
        SELECT groups.*, sum(groups.weight) OVER (
                PARTITION BY groups.name, groups.part, groups.extra ORDER BY groups.duration_group
            ) AS up_to,
            sum(groups.weight) OVER (PARTITION BY groups.name, groups.part, groups.extra) AS timed
        FROM analytics.durations(
            since, until, 'range', 'UTC', 'model_usage', 'name', false, organization, service, deployment
        ) AS groups
    ), slow AS (
        SELECT ranked.name, ranked.part, ranked.extra,
            min(ranked.longest) FILTER (WHERE ranked.up_to >= 0.5 * ranked.timed) AS p50,
            min(ranked.longest) FILTER (WHERE ranked.up_to >= 0.95 * ranked.timed) AS p95
        FROM ranked GROUP BY 1, 2, 3
    ), known AS (
        SELECT person.name, person.part, person.extra, sum(bit_count(person.bits))::bigint AS people
        FROM analytics.people_seen(
            since, until, 'range', 'UTC', '{model_usage}', 'name', false, false, organization, service, deployment
        ) AS person GROUP BY 1, 2, 3
    )
    SELECT called.extra, called.part, called.name, called.weight, coalesce(known.people, 0), called.input_tokens,
        called.output_tokens, coalesce(called.failed, 0) / called.weight, slow.p50, slow.p95
    FROM analytics.sums(
        since, until, 'range', 'UTC', '{model_usage}', 'name', false, organization, service, deployment
    ) AS called
    LEFT JOIN known ON known.name = called.name AND known.part IS NOT DISTINCT FROM called.part
        AND known.extra IS NOT DISTINCT FROM called.extra
    LEFT JOIN slow ON slow.name = called.name AND slow.part IS NOT DISTINCT FROM called.part
        AND slow.extra IS NOT DISTINCT FROM called.extra
    WHERE analytics.hidden_below(coalesce(known.people, 0), floor) IS NOT NULL ORDER BY 4 DESC, 1, 2, 3;
END $$;

CREATE OR REPLACE FUNCTION analytics.funnel_steps(
    since timestamptz, until timestamptz, organization text DEFAULT NULL, service text DEFAULT NULL,
    deployment text DEFAULT NULL, smallest_group integer DEFAULT NULL
) RETURNS TABLE (step text, people bigint)
LANGUAGE plpgsql STABLE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp SET plan_cache_mode = force_custom_plan SET jit = off SET work_mem = '64MB' AS $$
#variable_conflict use_variable
BEGIN
    RETURN QUERY
    WITH counted AS (
        SELECT CASE person.source
                WHEN 'answered' THEN 'endpoint_usage:' || coalesce(person.part || ' ', '') || person.name
                ELSE person.source || ':' || person.name || coalesce('/' || person.part, '')
            END AS step, person.chunk, bit_or(person.bits) AS bits
        FROM analytics.people_seen(
            since, until, 'range', 'UTC', '{user_activity,answered,feature_usage,model_usage}', 'name', false, false,
            organization, service, deployment
        ) AS person GROUP BY 1, 2
    )
    SELECT counted.step, sum(bit_count(counted.bits))::bigint FROM counted GROUP BY 1
    HAVING sum(bit_count(counted.bits)) >= analytics.floored(smallest_group) ORDER BY 2 DESC, 1 LIMIT 200;
END $$;
