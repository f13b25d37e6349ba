CREATE FUNCTION analytics.active_users(
    since timestamptz, until timestamptz, step text DEFAULT 'day', zone text DEFAULT 'UTC',
    organization text DEFAULT NULL, service text DEFAULT NULL, deployment text DEFAULT NULL,
    smallest_group integer DEFAULT NULL
) RETURNS TABLE (period date, users bigint, new_users bigint, returning_users bigint)
LANGUAGE plpgsql STABLE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp SET plan_cache_mode = force_custom_plan SET jit = off SET work_mem = '32MB' AS $$
#variable_conflict use_variable
DECLARE
    floor integer := analytics.floored(smallest_group);
BEGIN
    IF step NOT IN ('day', 'week', 'month') THEN
        RAISE invalid_parameter_value USING MESSAGE = 'step must be day, week or month';
    END IF;
    RETURN QUERY
    WITH seen AS MATERIALIZED (
        SELECT event.user_id, date_trunc(step, event.timestamp AT TIME ZONE zone) AS at
        FROM analytics.activity(since, until, organization, service, deployment) AS event
        WHERE event.user_id IS NOT NULL GROUP BY 1, 2
    ), firsts AS (
        SELECT seen.user_id, min(seen.at) AS at FROM seen GROUP BY 1
    ), arrived AS (
        SELECT firsts.at, count(*) AS people FROM firsts
        WHERE NOT EXISTS (
            SELECT FROM analytics.activity('-infinity', since, organization, service, deployment) AS earlier
            WHERE earlier.user_id = firsts.user_id
        ) GROUP BY 1
    ), counted AS (
        SELECT seen.at, count(*) AS people FROM seen GROUP BY 1
    ), told AS (
        SELECT calendar.at, coalesce(counted.people, 0) AS people, coalesce(arrived.people, 0) AS newcomers
        FROM generate_series(
            date_trunc(step, since AT TIME ZONE zone), (until AT TIME ZONE zone) - interval '1 microsecond',
            ('1 ' || step)::interval
        ) AS calendar (at)
        LEFT JOIN counted ON counted.at = calendar.at LEFT JOIN arrived ON arrived.at = calendar.at
    )
    -- Of two parts and their sum, each can be told from the others: both parts are hidden or none.
    SELECT told.at::date, analytics.hidden_below(told.people, floor),
        CASE WHEN analytics.hidden_below(told.people - told.newcomers, floor) IS NOT NULL
            THEN analytics.hidden_below(told.newcomers, floor) END,
        CASE WHEN analytics.hidden_below(told.newcomers, floor) IS NOT NULL
            THEN analytics.hidden_below(told.people - told.newcomers, floor) END
    FROM told ORDER BY 1;
END $$;

COMMENT ON FUNCTION analytics.active_users IS
    'People seen in each day, week or month; new_users had no row before, as far back as rows go';

CREATE FUNCTION analytics.stickiness(
    since timestamptz, until timestamptz, zone text DEFAULT 'UTC', organization text DEFAULT NULL,
    service text DEFAULT NULL, deployment text DEFAULT NULL, smallest_group integer DEFAULT NULL
) RETURNS TABLE (day date, daily bigint, weekly bigint, monthly bigint, stickiness double precision)
LANGUAGE plpgsql STABLE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp SET plan_cache_mode = force_custom_plan SET jit = off SET work_mem = '32MB' AS $$
#variable_conflict use_variable
DECLARE
    floor integer := analytics.floored(smallest_group);
    first_day date := (since AT TIME ZONE zone)::date;
    last_day date := ((until AT TIME ZONE zone) - interval '1 microsecond')::date;
BEGIN
    RETURN QUERY
    WITH seen AS (
        SELECT event.user_id, (event.timestamp AT TIME ZONE zone)::date AS at
        FROM analytics.activity(
            (first_day - 29)::timestamp AT TIME ZONE zone, until, organization, service, deployment
        ) AS event
        WHERE event.user_id IS NOT NULL GROUP BY 1, 2
    ), stays AS (
        SELECT seen.at, lead(seen.at) OVER (PARTITION BY seen.user_id ORDER BY seen.at) AS next_at FROM seen
    ), ends AS (
        SELECT stays.at, coalesce(least(stays.next_at - stays.at, 30), 30) AS days, count(*) AS people
        FROM stays GROUP BY 1, 2
    ), changes (at, daily, weekly, monthly) AS (
        -- A person counts from a day on until 1, 7 or 30 days later, or until the next day with the same person.
        SELECT ends.at, ends.people, ends.people, ends.people FROM ends
        UNION ALL SELECT ends.at + 1, -ends.people, 0, 0 FROM ends
        UNION ALL SELECT ends.at + least(ends.days, 7), 0, -ends.people, 0 FROM ends
        UNION ALL SELECT ends.at + ends.days, 0, 0, -ends.people FROM ends
        UNION ALL SELECT calendar.at::date, 0, 0, 0 FROM generate_series(first_day, last_day, interval '1 day') AS calendar (at)
    ), counted AS (
        SELECT changes.at, sum(sum(changes.daily)) OVER so_far AS daily, sum(sum(changes.weekly)) OVER so_far AS weekly,
            sum(sum(changes.monthly)) OVER so_far AS monthly
        FROM changes GROUP BY 1 WINDOW so_far AS (ORDER BY changes.at)
    )
    SELECT counted.at, analytics.hidden_below(counted.daily::bigint, floor),
        analytics.hidden_below(counted.weekly::bigint, floor), analytics.hidden_below(counted.monthly::bigint, floor),
        analytics.hidden_below(counted.daily::bigint, floor)::double precision
            / nullif(analytics.hidden_below(counted.monthly::bigint, floor), 0)
    FROM counted WHERE counted.at BETWEEN first_day AND last_day ORDER BY 1;
END $$;

COMMENT ON FUNCTION analytics.stickiness IS
    'People of each day, of the 7 days and of the 30 days that end with it; stickiness is daily over monthly';

CREATE FUNCTION analytics.retention(
    since timestamptz, until timestamptz, zone text DEFAULT 'UTC', organization text DEFAULT NULL,
    service text DEFAULT NULL, deployment text DEFAULT NULL, smallest_group integer DEFAULT NULL
) RETURNS TABLE (cohort date, people bigint, weeks_later integer, returned bigint, share double precision)
LANGUAGE plpgsql STABLE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp SET plan_cache_mode = force_custom_plan SET jit = off SET work_mem = '32MB' AS $$
#variable_conflict use_variable
DECLARE
    floor integer := analytics.floored(smallest_group);
    first_week timestamp := date_trunc('week', since AT TIME ZONE zone);
    opens_at timestamptz := first_week AT TIME ZONE zone;
BEGIN
    RETURN QUERY
    WITH seen AS MATERIALIZED (
        SELECT event.user_id, date_trunc('week', event.timestamp AT TIME ZONE zone) AS week
        FROM analytics.activity(opens_at, until, organization, service, deployment) AS event
        WHERE event.user_id IS NOT NULL GROUP BY 1, 2
    ), arrived AS MATERIALIZED (
        SELECT firsts.user_id, firsts.week FROM (SELECT seen.user_id, min(seen.week) AS week FROM seen GROUP BY 1) AS firsts
        WHERE NOT EXISTS (
            SELECT FROM analytics.activity('-infinity', opens_at, organization, service, deployment) AS earlier
            WHERE earlier.user_id = firsts.user_id
        )
    ), cohorts AS (
        SELECT arrived.week, count(*) AS people FROM arrived GROUP BY 1 HAVING count(*) >= floor
    ), came_back AS (
        SELECT arrived.week AS cohort, seen.week, count(*) AS people
        FROM arrived JOIN seen ON seen.user_id = arrived.user_id GROUP BY 1, 2
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

COMMENT ON FUNCTION analytics.retention IS
    'People by the week of their first row ever, and how many of them were there in each week after';
