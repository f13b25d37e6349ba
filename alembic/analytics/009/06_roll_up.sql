-- Whoever changes rows of the four tables says so in the same transaction; NULL is every day. A statement of a
-- transaction that has not said so marks every day: see mark_every_day.
CREATE FUNCTION ingest.mark_days(days date[]) RETURNS void LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    INSERT INTO analytics.rollup_marks (day) SELECT DISTINCT unnest(coalesce(days, ARRAY[NULL::date]));
    PERFORM set_config('telemetry.days_marked', 'on', true);
END $$;

COMMENT ON FUNCTION ingest.mark_days IS
    'Days in UTC whose rows this transaction changes, so that their sums are not used before they are made anew';

CREATE FUNCTION ingest.mark_every_day() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF current_setting('telemetry.days_marked', true) IS DISTINCT FROM 'on' THEN
        PERFORM ingest.mark_days(NULL);
    END IF;
    RETURN NULL;
END $$;

-- A day is missing when it has rows and no sums; a day that changed waits until its sums are five minutes old.
CREATE FUNCTION ingest.days_to_roll_up(keep_days integer) RETURNS SETOF date LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    today date := (now() AT TIME ZONE 'UTC')::date;
BEGIN
    IF EXISTS (SELECT FROM analytics.rollup_marks AS mark WHERE mark.day IS NULL) THEN
        DELETE FROM analytics.rolled_days;
        DELETE FROM analytics.rollup_marks AS mark WHERE mark.day IS NULL;
    END IF;
    DELETE FROM analytics.rolled_days AS rolled WHERE rolled.day < today - keep_days;
    DELETE FROM analytics.rollup_marks AS mark
    WHERE NOT EXISTS (SELECT FROM analytics.rolled_days AS rolled WHERE rolled.day = mark.day);
    RETURN QUERY
    SELECT days.day FROM generate_series(1, keep_days) AS ago (days)
    CROSS JOIN LATERAL (SELECT today - ago.days) AS days (day)
    LEFT JOIN analytics.rolled_days AS rolled ON rolled.day = days.day
    CROSS JOIN LATERAL (
        SELECT days.day::timestamp AT TIME ZONE 'UTC' AS lower, (days.day + 1)::timestamp AT TIME ZONE 'UTC' AS upper
    ) AS bounds
    WHERE CASE WHEN rolled.day IS NULL
        THEN EXISTS (SELECT FROM public.user_activity WHERE timestamp >= lower AND timestamp < upper)
            OR EXISTS (SELECT FROM public.endpoint_usage WHERE timestamp >= lower AND timestamp < upper)
            OR EXISTS (SELECT FROM public.feature_usage WHERE timestamp >= lower AND timestamp < upper)
            OR EXISTS (SELECT FROM public.model_usage WHERE timestamp >= lower AND timestamp < upper)
        ELSE rolled.rolled_at < now() - interval '5 minutes'
            AND EXISTS (SELECT FROM analytics.rollup_marks AS mark WHERE mark.day = rolled.day)
        END
    ORDER BY 1 DESC;
END $$;

COMMENT ON FUNCTION ingest.days_to_roll_up IS 'Days whose sums are missing or old, the latest first';

-- Give numbers to the people and organizations of a day. Holds back an erasure while it writes, and only then: nobody
-- who is erased meanwhile gets a number.
CREATE FUNCTION ingest.number_people(day date) RETURNS void LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp SET plan_cache_mode = force_custom_plan SET jit = off SET work_mem = '64MB' AS $$
#variable_conflict use_variable
DECLARE
    started timestamptz := clock_timestamp();
    lower timestamptz := day::timestamp AT TIME ZONE 'UTC';
    upper timestamptz := (day + 1)::timestamp AT TIME ZONE 'UTC';
    users text[];
    organizations text[];
BEGIN
    SELECT array_agg(DISTINCT event.user_id), array_agg(DISTINCT event.organization_id) INTO users, organizations
    FROM analytics.rows(lower, upper) AS event;
    LOCK TABLE ingest.suppressions IN ROW SHARE MODE;
    INSERT INTO analytics.people (kind, hash)
    SELECT found.kind, found.hash FROM (
        SELECT 'user', unnest(users) UNION ALL SELECT 'organization', unnest(organizations)
    ) AS found (kind, hash)
    WHERE found.hash IS NOT NULL
        AND NOT EXISTS (SELECT FROM analytics.people AS known WHERE known.kind = found.kind AND known.hash = found.hash)
        AND NOT EXISTS (
            SELECT FROM ingest.suppressions AS erased WHERE erased.kind = found.kind AND erased.hash = found.hash
                AND erased.erased_at >= started - interval '1 minute'
        );
END $$;

COMMENT ON FUNCTION ingest.number_people IS 'First half of rolling up a day, in a transaction of its own';

-- In a transaction of isolation REPEATABLE READ, so that the marks that it deletes are those of the rows that it sees.
CREATE FUNCTION ingest.roll_up(day date) RETURNS void LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp SET plan_cache_mode = force_custom_plan SET jit = off SET work_mem = '64MB' AS $$
#variable_conflict use_variable
DECLARE
    lower timestamptz := day::timestamp AT TIME ZONE 'UTC';
    upper timestamptz := (day + 1)::timestamp AT TIME ZONE 'UTC';
    level text;
    source text;
BEGIN
    IF current_setting('transaction_isolation') <> 'repeatable read' THEN
        RAISE invalid_transaction_state USING MESSAGE = 'roll_up needs a transaction of isolation REPEATABLE READ';
    END IF;
    INSERT INTO analytics.rollup_marks VALUES ($1);  -- so that the functions below read the rows
    DELETE FROM analytics.rolled_days AS rolled WHERE rolled.day = $1;
    INSERT INTO analytics.rolled_days VALUES ($1);
    FOREACH level IN ARRAY ARRAY['name', 'release'] LOOP
        FOREACH source IN ARRAY ARRAY['user_activity', 'endpoint_usage', 'feature_usage', 'model_usage'] LOOP
            INSERT INTO analytics.day_sums
            WITH groups AS (
                SELECT each.name, each.part, each.extra, each.service_name, each.service_version, each.deployment_type,
                    array_agg(each.duration_group ORDER BY each.duration_group) AS duration_groups,
                    array_agg(each.longest ORDER BY each.duration_group) AS longest,
                    array_agg(each.weight ORDER BY each.duration_group) AS weights
                FROM analytics.durations(lower, upper, 'day', 'UTC', source, level, true, NULL, NULL, NULL) AS each
                GROUP BY 1, 2, 3, 4, 5, 6
            )
            SELECT $1, level, source, sums.name, sums.part, sums.extra, sums.service_name, sums.service_version,
                sums.deployment_type, sums.weight, sums.refused, sums.failed, sums.input_tokens, sums.output_tokens,
                sums.first_at, sums.last_at, groups.duration_groups, groups.longest, groups.weights
            FROM analytics.sums(lower, upper, 'day', 'UTC', ARRAY[source], level, true, NULL, NULL, NULL) AS sums
            LEFT JOIN groups ON (  -- as text, because NULL is a key too, and only an equality is hashed
                groups.name, groups.part, groups.extra, groups.service_name, groups.service_version, groups.deployment_type
            )::text = (
                sums.name, sums.part, sums.extra, sums.service_name, sums.service_version, sums.deployment_type
            )::text;
        END LOOP;
    END LOOP;
    INSERT INTO analytics.day_people
    SELECT $1, wanted.level, person.source, person.name, person.part, person.extra, person.service_name,
        person.service_version, person.deployment_type, person.chunk, person.bits
    FROM (VALUES
        ('name', '{user_activity,endpoint_usage,feature_usage,model_usage}'), ('name', '{answered}'),
        ('release', '{endpoint_usage}'), ('release', '{""}')
    ) AS wanted (level, sources)
    CROSS JOIN LATERAL analytics.people_seen(
        lower, upper, 'day', 'UTC', wanted.sources::text[], wanted.level, true, false, NULL, NULL, NULL
    ) AS person;
    INSERT INTO analytics.day_organizations
    SELECT $1, known.number, days.service_name, days.deployment_type, days.events, days.requests, days.feature_uses,
        days.model_calls, days.members
    FROM analytics.organization_days(lower, upper, 'UTC', NULL, NULL, NULL) AS days
    LEFT JOIN analytics.people AS known ON known.kind = 'organization' AND known.hash = days.organization_id;
    IF EXISTS (SELECT FROM analytics.day_people AS seen WHERE seen.day = $1 AND seen.chunk >= 1000000000 / 32768) THEN
        RAISE serialization_failure USING MESSAGE = 'somebody of this day has no number: number_people first';
    END IF;
    DELETE FROM analytics.rollup_marks AS mark WHERE mark.day = $1;
END $$;

COMMENT ON FUNCTION ingest.roll_up IS 'Second half of rolling up a day: its sums, in the place of older ones';

-- Marks the days of somebody who is erased, and forgets the number.
CREATE FUNCTION ingest.forget(kind text, hash text) RETURNS void LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_variable
DECLARE
    number integer;
BEGIN
    DELETE FROM analytics.people AS known WHERE known.kind = kind AND known.hash = hash RETURNING known.number INTO number;
    PERFORM ingest.mark_days(array_agg(days.day)) FROM (
        SELECT seen.day FROM analytics.day_people AS seen
        WHERE kind = 'user' AND seen.chunk = number / 32768 AND get_bit(seen.bits, number % 32768) = 1
        UNION SELECT counted.day FROM analytics.day_organizations AS counted
        WHERE kind = 'organization' AND counted.organization = number
    ) AS days HAVING count(*) > 0;
END $$;

COMMENT ON FUNCTION ingest.forget IS
    'Takes the number of an erased person or organization away, and marks the days that hold it';

CREATE FUNCTION ingest.forget_unseen() RETURNS void LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    WITH seen AS MATERIALIZED (
        SELECT seen.chunk, bit_or(seen.bits) AS bits FROM analytics.day_people AS seen WHERE seen.source = '' GROUP BY 1
    )
    DELETE FROM analytics.people AS gone USING (
        SELECT known.number FROM analytics.people AS known LEFT JOIN seen ON seen.chunk = known.number / 32768
        WHERE known.kind = 'user' AND (seen.chunk IS NULL OR get_bit(seen.bits, known.number % 32768) = 0)
        UNION ALL
        SELECT known.number FROM analytics.people AS known WHERE known.kind = 'organization'
            AND NOT EXISTS (SELECT FROM analytics.day_organizations AS counted WHERE counted.organization = known.number)
    ) AS unseen WHERE gone.number = unseen.number
$$;

COMMENT ON FUNCTION ingest.forget_unseen IS 'Takes away the numbers of those of whom no counted day is left'

-- The days that audit names: counted ones whose sums or people are not those of their rows.
CREATE FUNCTION ingest.wrong_days(latest integer) RETURNS SETOF date LANGUAGE sql STABLE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp SET jit = off SET work_mem = '64MB' AS $$
    WITH days AS MATERIALIZED (
        SELECT day, day::timestamp AT TIME ZONE 'UTC' AS lower, (day + 1)::timestamp AT TIME ZONE 'UTC' AS upper
        FROM unnest(analytics.counted_days('-infinity', 'infinity')) AS day ORDER BY day DESC LIMIT latest
    )
    SELECT days.day FROM days
    CROSS JOIN LATERAL (
        SELECT coalesce(sum(event.weight), 0) AS events, count(DISTINCT event.user_id) AS people
        FROM analytics.rows(days.lower, days.upper) AS event
    ) AS found
    CROSS JOIN LATERAL (
        SELECT coalesce(sum(sums.weight), 0) AS events FROM analytics.day_sums AS sums
        WHERE sums.day = days.day AND sums.level = 'name'
    ) AS summed
    CROSS JOIN LATERAL (
        SELECT coalesce(sum(bit_count(by_chunk.bits)), 0) AS people FROM (
            SELECT bit_or(seen.bits) AS bits FROM analytics.day_people AS seen
            WHERE seen.day = days.day AND seen.source = '' GROUP BY seen.chunk
        ) AS by_chunk
    ) AS counted
    WHERE found.people <> counted.people OR abs(found.events - summed.events) > 1e-9 * found.events
$$;

COMMENT ON FUNCTION ingest.wrong_days IS 'Of the latest counted days those whose sums or people are not those of their rows'
