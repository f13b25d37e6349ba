CREATE OR REPLACE FUNCTION analytics.active_users(
    since timestamptz, until timestamptz, step text DEFAULT 'day', zone text DEFAULT 'UTC',
    organization text DEFAULT NULL, service text DEFAULT NULL, deployment text DEFAULT NULL,
    smallest_group integer DEFAULT NULL
) RETURNS TABLE (period date, users bigint, new_users bigint, returning_users bigint)
LANGUAGE plpgsql STABLE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp SET plan_cache_mode = force_custom_plan SET jit = off SET work_mem = '64MB' AS $$
#variable_conflict use_variable
DECLARE
    floor integer := analytics.floored(smallest_group);
BEGIN
    IF step NOT IN ('day', 'week', 'month') THEN
        RAISE invalid_parameter_value USING MESSAGE = 'step must be day, week or month';
    END IF;
    RETURN QUERY
    WITH seen AS MATERIALIZED (
        SELECT person.at, person.bits,
            bit_or(person.bits) OVER (
                PARTITION BY person.chunk ORDER BY person.at ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING
            ) AS earlier
        FROM analytics.people_seen(
            since, until, step, zone, '{""}', 'nothing', false, true, organization, service, deployment
        ) AS person
    ), counted AS (
        SELECT seen.at, sum(bit_count(seen.bits))::bigint AS people,
            sum(bit_count(CASE WHEN seen.earlier IS NULL THEN seen.bits ELSE seen.bits & ~ seen.earlier END))::bigint
                AS newcomers
        FROM seen GROUP BY 1
    ), told AS (
        SELECT calendar.at, coalesce(counted.people, 0) AS people, coalesce(counted.newcomers, 0) AS newcomers
        FROM generate_series(
            date_trunc(step, since AT TIME ZONE zone), (until AT TIME ZONE zone) - interval '1 microsecond',
            ('1 ' || step)::interval
        ) AS calendar (at)
        LEFT JOIN counted ON counted.at = calendar.at
    )
    -- Of two parts and their sum, each can be told from the others: both parts are hidden or none.
    SELECT told.at::date, analytics.hidden_below(told.people, floor),
        CASE WHEN analytics.hidden_below(told.people - told.newcomers, floor) IS NOT NULL
            THEN analytics.hidden_below(told.newcomers, floor) END,
        CASE WHEN analytics.hidden_below(told.newcomers, floor) IS NOT NULL
            THEN analytics.hidden_below(told.people - told.newcomers, floor) END
    FROM told ORDER BY 1;
END $$;

CREATE OR REPLACE FUNCTION analytics.stickiness(
    since timestamptz, until timestamptz, zone text DEFAULT 'UTC', organization text DEFAULT NULL,
    service text DEFAULT NULL, deployment text DEFAULT NULL, smallest_group integer DEFAULT NULL
) RETURNS TABLE (day date, daily bigint, weekly bigint, monthly bigint, stickiness double precision)
LANGUAGE plpgsql STABLE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp SET plan_cache_mode = force_custom_plan SET jit = off SET work_mem = '64MB' AS $$
#variable_conflict use_variable
DECLARE
    floor integer := analytics.floored(smallest_group);
    first_day timestamp := date_trunc('day', since AT TIME ZONE zone);
    opens timestamp := first_day - interval '29 days';
BEGIN
    RETURN QUERY
    WITH seen AS MATERIALIZED (
        SELECT person.at, person.chunk, person.bits
        FROM analytics.people_seen(
            opens AT TIME ZONE zone, until, 'day', zone, '{""}', 'nothing', false, false, organization, service, deployment
        ) AS person
    ), calendar AS (
        SELECT days.at, chunks.chunk
        FROM generate_series(opens, (until AT TIME ZONE zone) - interval '1 microsecond', interval '1 day') AS days (at)
        CROSS JOIN (SELECT DISTINCT seen.chunk FROM seen UNION SELECT 0) AS chunks
    ), sliding AS (
        SELECT calendar.at, seen.bits AS on_day,
            bit_or(seen.bits) OVER (PARTITION BY calendar.chunk ORDER BY calendar.at ROWS 6 PRECEDING) AS in_week,
            bit_or(seen.bits) OVER (PARTITION BY calendar.chunk ORDER BY calendar.at ROWS 29 PRECEDING) AS in_month
        FROM calendar LEFT JOIN seen ON seen.at = calendar.at AND seen.chunk = calendar.chunk
    ), counted AS (
        SELECT sliding.at, analytics.hidden_below(coalesce(sum(bit_count(sliding.on_day)), 0)::bigint, floor) AS daily,
            analytics.hidden_below(coalesce(sum(bit_count(sliding.in_week)), 0)::bigint, floor) AS weekly,
            analytics.hidden_below(coalesce(sum(bit_count(sliding.in_month)), 0)::bigint, floor) AS monthly
        FROM sliding WHERE sliding.at >= first_day GROUP BY 1
    )
    SELECT counted.at::date, counted.daily, counted.weekly, counted.monthly,
        counted.daily::double precision / nullif(counted.monthly, 0)
    FROM counted ORDER BY 1;
END $$;

CREATE OR REPLACE FUNCTION analytics.retention(
    since timestamptz, until timestamptz, zone text DEFAULT 'UTC', organization text DEFAULT NULL,
    service text DEFAULT NULL, deployment text DEFAULT NULL, smallest_group integer DEFAULT NULL
) RETURNS TABLE (cohort date, people bigint, weeks_later integer, returned bigint, share double precision)
LANGUAGE plpgsql STABLE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp SET plan_cache_mode = force_custom_plan SET jit = off SET work_mem = '64MB' AS $$
#variable_conflict use_variable
DECLARE
    floor integer := analytics.floored(smallest_group);
BEGIN
    RETURN QUERY
    WITH seen AS MATERIALIZED (
        SELECT person.at AS week, person.chunk, person.bits,
            bit_or(person.bits) OVER (
                PARTITION BY person.chunk ORDER BY person.at ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING
            ) AS earlier
        FROM analytics.people_seen(
            date_trunc('week', since AT TIME ZONE zone) AT TIME ZONE zone, until, 'week', zone, '{""}', 'nothing', false, true,
            organization, service, deployment
        ) AS person
    ), arrived AS MATERIALIZED (
        SELECT seen.week, seen.chunk,
            CASE WHEN seen.earlier IS NULL THEN seen.bits ELSE seen.bits & ~ seen.earlier END AS bits
        FROM seen WHERE seen.week > '-infinity'
    ), cohorts AS (
        SELECT arrived.week, sum(bit_count(arrived.bits))::bigint AS people FROM arrived GROUP BY 1
        HAVING sum(bit_count(arrived.bits)) >= floor
    ), came_back AS (
        SELECT arrived.week AS cohort, seen.week, sum(bit_count(arrived.bits & seen.bits))::bigint AS people
        FROM arrived JOIN seen ON seen.chunk = arrived.chunk AND seen.week >= arrived.week GROUP BY 1, 2
    )
    SELECT cohorts.week::date, cohorts.people, ((later.week::date - cohorts.week::date) / 7),
        analytics.hidden_below(coalesce(came_back.people, 0), floor),
        analytics.hidden_below(coalesce(came_back.people, 0), floor)::double precision / cohorts.people
    FROM cohorts
    CROSS JOIN LATERAL generate_series(
        cohorts.week, (until AT TIME ZONE zone) - interval '1 microsecond', interval '7 days'
    ) AS later (week)
    LEFT JOIN came_back ON came_back.cohort = cohorts.week AND came_back.week = later.week
    ORDER BY 1, 3;
END $$;
