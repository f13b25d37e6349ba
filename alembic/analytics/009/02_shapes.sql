-- Durations that differ by less than two percent are one group. A percentile is the longest duration of its group.
CREATE OR REPLACE FUNCTION analytics.duration_group(duration_ms double precision) RETURNS integer
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT floor(50 * ln(greatest(duration_ms, 0.001)))::integer
$$;

-- Rows of one table in a shape that all share, each as a sum of one: a name, its parts, and what may be added up.
-- Without SET and SECURITY DEFINER, so that Postgres inlines them; one for each table, so that a locked table stops only
-- the questions about it.
CREATE FUNCTION analytics.rows_of_user_activity(
    since timestamptz, until timestamptz, organization text, service text, deployment text
) RETURNS TABLE (
    source text, name text, part text, extra text, service_name text, service_version text, deployment_type text,
    user_id text, organization_id text, "timestamp" timestamptz, duration_ms double precision,
    weight double precision, refused double precision, failed double precision, input_tokens double precision,
    output_tokens double precision
) LANGUAGE sql STABLE PARALLEL SAFE AS $$
    SELECT 'user_activity'::text, event.event_type::text, NULL::text, NULL::text, event.service_name::text,
        event.service_version::text, event.deployment_type::text, event.user_id::text, event.organization_id::text,
        event.timestamp, NULL::double precision, event.weight, NULL::double precision,
        NULL::double precision, NULL::double precision, NULL::double precision
    FROM public.user_activity AS event
    WHERE event.timestamp >= $1 AND event.timestamp < $2 AND ($3 IS NULL OR event.organization_id = $3)
        AND ($4 IS NULL OR event.service_name = $4) AND ($5 IS NULL OR event.deployment_type = $5)
$$;

CREATE FUNCTION analytics.rows_of_endpoint_usage(
    since timestamptz, until timestamptz, organization text, service text, deployment text
) RETURNS TABLE (
    source text, name text, part text, extra text, service_name text, service_version text, deployment_type text,
    user_id text, organization_id text, "timestamp" timestamptz, duration_ms double precision,
    weight double precision, refused double precision, failed double precision, input_tokens double precision,
    output_tokens double precision
) LANGUAGE sql STABLE PARALLEL SAFE AS $$
    SELECT 'endpoint_usage'::text, event.endpoint::text, event.method::text, NULL::text, event.service_name::text,
        event.service_version::text, event.deployment_type::text, event.user_id::text, event.organization_id::text,
        event.timestamp, event.duration_ms, event.weight, CASE WHEN event.status_code BETWEEN 400 AND 499 THEN event.weight END,
        CASE WHEN event.status_code >= 500 THEN event.weight END, NULL::double precision, NULL::double precision
    FROM public.endpoint_usage AS event
    WHERE event.timestamp >= $1 AND event.timestamp < $2 AND ($3 IS NULL OR event.organization_id = $3)
        AND ($4 IS NULL OR event.service_name = $4) AND ($5 IS NULL OR event.deployment_type = $5)
$$;

CREATE FUNCTION analytics.rows_of_feature_usage(
    since timestamptz, until timestamptz, organization text, service text, deployment text
) RETURNS TABLE (
    source text, name text, part text, extra text, service_name text, service_version text, deployment_type text,
    user_id text, organization_id text, "timestamp" timestamptz, duration_ms double precision,
    weight double precision, refused double precision, failed double precision, input_tokens double precision,
    output_tokens double precision
) LANGUAGE sql STABLE PARALLEL SAFE AS $$
    SELECT 'feature_usage'::text, event.feature_name::text, event.action::text, NULL::text, event.service_name::text,
        event.service_version::text, event.deployment_type::text, event.user_id::text, event.organization_id::text,
        event.timestamp, NULL::double precision, event.weight, NULL::double precision,
        NULL::double precision, NULL::double precision, NULL::double precision
    FROM public.feature_usage AS event
    WHERE event.timestamp >= $1 AND event.timestamp < $2 AND ($3 IS NULL OR event.organization_id = $3)
        AND ($4 IS NULL OR event.service_name = $4) AND ($5 IS NULL OR event.deployment_type = $5)
$$;

CREATE FUNCTION analytics.rows_of_model_usage(
    since timestamptz, until timestamptz, organization text, service text, deployment text
) RETURNS TABLE (
    source text, name text, part text, extra text, service_name text, service_version text, deployment_type text,
    user_id text, organization_id text, "timestamp" timestamptz, duration_ms double precision,
    weight double precision, refused double precision, failed double precision, input_tokens double precision,
    output_tokens double precision
) LANGUAGE sql STABLE PARALLEL SAFE AS $$
    SELECT 'model_usage'::text, event.operation::text, event.model::text, event.provider::text, event.service_name::text,
        event.service_version::text, event.deployment_type::text, event.user_id::text, event.organization_id::text,
        event.timestamp, event.duration_ms, event.weight, NULL::double precision,
        CASE WHEN event.error_type IS NOT NULL THEN event.weight END, event.input_tokens * event.weight, event.output_tokens * event.weight
    FROM public.model_usage AS event
    WHERE event.timestamp >= $1 AND event.timestamp < $2 AND ($3 IS NULL OR event.organization_id = $3)
        AND ($4 IS NULL OR event.service_name = $4) AND ($5 IS NULL OR event.deployment_type = $5)
$$;

-- Requests that did not fail: the steps that a funnel may take.
CREATE FUNCTION analytics.rows_of_answered(
    since timestamptz, until timestamptz, organization text, service text, deployment text
) RETURNS TABLE (
    source text, name text, part text, extra text, service_name text, service_version text, deployment_type text,
    user_id text, organization_id text, "timestamp" timestamptz, duration_ms double precision,
    weight double precision, refused double precision, failed double precision, input_tokens double precision,
    output_tokens double precision
) LANGUAGE sql STABLE PARALLEL SAFE AS $$
    SELECT 'answered'::text, event.endpoint::text, event.method::text, NULL::text, event.service_name::text,
        event.service_version::text, event.deployment_type::text, event.user_id::text, event.organization_id::text,
        event.timestamp, event.duration_ms, event.weight, NULL::double precision,
        NULL::double precision, NULL::double precision, NULL::double precision
    FROM public.endpoint_usage AS event
    WHERE event.timestamp >= $1 AND event.timestamp < $2 AND ($3 IS NULL OR event.organization_id = $3)
        AND ($4 IS NULL OR event.service_name = $4) AND ($5 IS NULL OR event.deployment_type = $5)
        AND (event.status_code IS NULL OR event.status_code < 400)
$$;

-- The rows of the four tables.
CREATE FUNCTION analytics.rows(since timestamptz, until timestamptz) RETURNS TABLE (
    user_id text, organization_id text, weight double precision
) LANGUAGE sql STABLE PARALLEL SAFE AS $$
    SELECT user_id, organization_id, weight FROM analytics.rows_of_user_activity($1, $2, NULL, NULL, NULL)
    UNION ALL SELECT user_id, organization_id, weight FROM analytics.rows_of_endpoint_usage($1, $2, NULL, NULL, NULL)
    UNION ALL SELECT user_id, organization_id, weight FROM analytics.rows_of_feature_usage($1, $2, NULL, NULL, NULL)
    UNION ALL SELECT user_id, organization_id, weight FROM analytics.rows_of_model_usage($1, $2, NULL, NULL, NULL)
$$;

CREATE FUNCTION analytics.counted_days(since timestamptz, until timestamptz) RETURNS date[]
LANGUAGE sql STABLE AS $$
    SELECT coalesce(array_agg(rolled.day ORDER BY rolled.day), '{}') FROM analytics.rolled_days AS rolled
    WHERE rolled.day >= since AT TIME ZONE 'UTC' AND rolled.day + 1 <= until AT TIME ZONE 'UTC'
        AND NOT EXISTS (SELECT FROM analytics.rollup_marks AS mark WHERE mark.day IS NULL OR mark.day = rolled.day)
$$;

-- SQL for the rows of a range that lie in no counted day. In it, $2 to $4 are organization, service and deployment.
CREATE FUNCTION analytics.uncounted_rows(sources text[], since timestamptz, until timestamptz, counted date[])
RETURNS text LANGUAGE sql STABLE SET datestyle = 'ISO' SET timezone = 'UTC' AS $$
    WITH ranges (lower, upper) AS (
        SELECT since, coalesce(min(days.day)::timestamp AT TIME ZONE 'UTC', until) FROM unnest(counted) AS days (day)
        UNION ALL
        SELECT (days.day + 1)::timestamp AT TIME ZONE 'UTC',
            coalesce((lead(days.day) OVER (ORDER BY days.day))::timestamp AT TIME ZONE 'UTC', until)
        FROM unnest(counted) AS days (day)
    )
    SELECT coalesce(
        string_agg(
            format('SELECT * FROM analytics.%I(%L, %L, $2, $3, $4)', 'rows_of_' || source, ranges.lower, ranges.upper),
            ' UNION ALL '
        ),
        format('SELECT * FROM analytics.%I(''infinity'', ''infinity'', $2, $3, $4)', 'rows_of_' || sources[1])
    ) FROM ranges CROSS JOIN unnest(sources) AS source WHERE ranges.lower < ranges.upper
$$;

-- SQL for the period of a time without zone. A step of 'range' makes one period of the whole range.
CREATE FUNCTION analytics.period_of(step text, moment text) RETURNS text LANGUAGE sql IMMUTABLE AS $$
    SELECT CASE step WHEN 'range' THEN 'NULL::timestamp' ELSE format('date_trunc(%L, %s)', step, moment) END
$$;

-- The keys of an answer: of names, of releases or none. `whole` adds those of filters.
CREATE FUNCTION analytics.keys_of(level text, whole boolean) RETURNS text[] LANGUAGE sql IMMUTABLE AS $$
    SELECT CASE WHEN level = 'name' THEN '{name,part,extra}' ELSE '{}' END::text[]
        || CASE WHEN level = 'release' OR whole THEN '{service_name,deployment_type}' ELSE '{}' END::text[]
        || CASE WHEN level = 'release' THEN '{service_version}' ELSE '{}' END::text[]
$$;

-- SQL for the keys, each with a comma before.
CREATE FUNCTION analytics.key_list(keys text[]) RETURNS text LANGUAGE sql IMMUTABLE AS $$
    SELECT coalesce(string_agg(', ' || key, ''), '') FROM unnest(keys) AS key
$$;

-- SQL for the six columns that may be keys: those that are none are NULL.
CREATE FUNCTION analytics.key_columns(keys text[]) RETURNS text LANGUAGE sql IMMUTABLE AS $$
    SELECT string_agg(CASE WHEN key = ANY (keys) THEN key ELSE 'NULL::text' END, ', ' ORDER BY place)
    FROM unnest('{name,part,extra,service_name,service_version,deployment_type}'::text[]) WITH ORDINALITY AS each (key, place)
$$;

-- The days whose sums serve: those with whole periods in UTC, where no organization is chosen.
CREATE FUNCTION analytics.serving_days(
    since timestamptz, until timestamptz, step text, zone text, organization text
) RETURNS date[] LANGUAGE sql STABLE AS $$
    SELECT CASE WHEN organization IS NULL AND (step = 'range' OR zone = 'UTC' AND step <> 'hour')
        THEN analytics.counted_days(since, until) ELSE '{}' END
$$;

-- Weighted sums by period and `level` ('name', 'release', or 'nothing').
CREATE FUNCTION analytics.sums(
    since timestamptz, until timestamptz, step text, zone text, sources text[], level text, whole boolean,
    organization text, service text, deployment text
) RETURNS TABLE (
    at timestamp, source text, name text, part text, extra text, service_name text, service_version text,
    deployment_type text, weight double precision, refused double precision, failed double precision,
    input_tokens double precision, output_tokens double precision, first_at timestamptz, last_at timestamptz
) LANGUAGE plpgsql STABLE AS $$
#variable_conflict use_column
DECLARE
    counted date[] := analytics.serving_days(since, until, step, zone, organization);
    keys text[] := analytics.keys_of(level, whole);
BEGIN
    RETURN QUERY EXECUTE format(
        'SELECT at, source, %2$s, sum(weight), sum(refused), sum(failed), sum(input_tokens), sum(output_tokens),
            min(first_at), max(last_at)
        FROM (
            SELECT %3$s AS at, source%1$s, weight, refused, failed, input_tokens, output_tokens, first_at, last_at
            FROM analytics.day_sums
            WHERE day = ANY ($5) AND level = $7 AND source = ANY ($1) AND ($3 IS NULL OR service_name = $3)
                AND ($4 IS NULL OR deployment_type = $4)
            UNION ALL
            SELECT %4$s AS at, source%1$s, sum(weight), sum(refused), sum(failed), sum(input_tokens), sum(output_tokens),
                min(timestamp), max(timestamp)
            FROM (%5$s) AS uncounted GROUP BY at, source%1$s
        ) AS cells GROUP BY at, source%1$s',
        analytics.key_list(keys), analytics.key_columns(keys),
        analytics.period_of(step, 'day::timestamp'), analytics.period_of(step, 'timestamp AT TIME ZONE $6'),
        analytics.uncounted_rows(sources, since, until, counted)
    ) USING sources, organization, service, deployment, counted, zone, CASE level WHEN 'name' THEN level ELSE 'release' END;
END $$;

-- Groups of durations with the weight of each, by the same keys.
CREATE FUNCTION analytics.durations(
    since timestamptz, until timestamptz, step text, zone text, source text, level text, whole boolean,
    organization text, service text, deployment text
) RETURNS TABLE (
    at timestamp, name text, part text, extra text, service_name text, service_version text, deployment_type text,
    duration_group integer, longest double precision, weight double precision
) LANGUAGE plpgsql STABLE AS $$
#variable_conflict use_column
DECLARE
    counted date[] := analytics.serving_days(since, until, step, zone, organization);
    keys text[] := analytics.keys_of(level, whole);
BEGIN
    RETURN QUERY EXECUTE format(
        'SELECT at, %2$s, duration_group, max(longest), sum(weight)
        FROM (
            SELECT %3$s AS at%1$s, member.duration_group, member.longest, member.weight
            FROM analytics.day_sums AS stored
            CROSS JOIN unnest(stored.duration_groups, stored.longest, stored.weights)
                AS member (duration_group, longest, weight)
            WHERE day = ANY ($5) AND level = $7 AND source = ANY ($1) AND ($3 IS NULL OR service_name = $3)
                AND ($4 IS NULL OR deployment_type = $4)
            UNION ALL
            SELECT %4$s AS at%1$s, analytics.duration_group(duration_ms) AS duration_group, max(duration_ms), sum(weight)
            FROM (%5$s) AS uncounted WHERE duration_ms IS NOT NULL GROUP BY at, duration_group%1$s
        ) AS cells GROUP BY at, duration_group%1$s',
        analytics.key_list(keys), analytics.key_columns(keys),
        analytics.period_of(step, 'day::timestamp'), analytics.period_of(step, 'timestamp AT TIME ZONE $6'),
        analytics.uncounted_rows(ARRAY[source], since, until, counted)
    ) USING ARRAY[source], organization, service, deployment, counted, zone,
        CASE level WHEN 'name' THEN level ELSE 'release' END;
END $$;

-- Who was seen, as bit strings, by the same keys. A source of '' is any table. With `history`, people from before the
-- range come in a period of -infinity. A person of the rows without a number gets one above 1000000000, good for this
-- one call.
CREATE FUNCTION analytics.people_seen(
    since timestamptz, until timestamptz, step text, zone text, sources text[], level text, whole boolean,
    history boolean, organization text, service text, deployment text
) RETURNS TABLE (
    at timestamp, source text, name text, part text, extra text, service_name text, service_version text,
    deployment_type text, chunk integer, bits bit
) LANGUAGE plpgsql STABLE AS $$
#variable_conflict use_column
DECLARE
    counted date[] := analytics.serving_days(since, until, step, zone, organization);
    keys text[] := analytics.keys_of(level, whole);
    tables text[] := CASE WHEN sources = '{""}' THEN '{user_activity,endpoint_usage,feature_usage,model_usage}' ELSE sources END;
BEGIN
    IF history THEN
        counted := analytics.serving_days('-infinity', since, 'range', zone, organization) || counted;
    END IF;
    RETURN QUERY EXECUTE format(
        'WITH pairs AS MATERIALIZED (
            SELECT DISTINCT CASE WHEN timestamp < $7 THEN ''-infinity'' ELSE %4$s END AS at,
                CASE WHEN $8 = ''{""}'' THEN '''' ELSE source END AS source%1$s, user_id
            FROM (%5$s) AS uncounted WHERE user_id IS NOT NULL
        ), numbered AS MATERIALIZED (
            SELECT somebody.user_id, coalesce(known.number, 1000000000 + (row_number() OVER ())::integer) AS number
            FROM (SELECT DISTINCT user_id FROM pairs) AS somebody
            LEFT JOIN analytics.people AS known ON known.kind = ''user'' AND known.hash = somebody.user_id
        )
        SELECT at, source, %2$s, chunk, bit_or(bits)
        FROM (
            SELECT CASE WHEN day < $7 AT TIME ZONE ''UTC'' THEN ''-infinity'' ELSE %3$s END AS at, source%1$s, chunk, bits
            FROM analytics.day_people
            WHERE day = ANY ($5) AND level = $9 AND source = ANY ($8) AND ($3 IS NULL OR service_name = $3)
                AND ($4 IS NULL OR deployment_type = $4)
            UNION ALL
            SELECT at, source%1$s, number / 32768 AS chunk, analytics.bits(number %% 32768, 1)
            FROM pairs JOIN numbered USING (user_id) GROUP BY at, source, number / 32768%1$s
        ) AS cells GROUP BY at, source, chunk%1$s',
        analytics.key_list(keys), analytics.key_columns(keys),
        analytics.period_of(step, 'day::timestamp'), analytics.period_of(step, 'timestamp AT TIME ZONE $6'),
        analytics.uncounted_rows(tables, CASE WHEN history THEN '-infinity' ELSE since END, until, counted)
    ) USING tables, organization, service, deployment, counted, zone, since, sources, CASE level WHEN 'name' THEN level ELSE 'release' END;
END $$;

-- What organizations did, by day, service and deployment; members are numbers that are good for this one call.
CREATE FUNCTION analytics.organization_days(
    since timestamptz, until timestamptz, zone text, organization text, service text, deployment text
) RETURNS TABLE (
    day date, organization_id text, service_name text, deployment_type text, events double precision,
    requests double precision, feature_uses double precision, model_calls double precision, members integer[]
) LANGUAGE plpgsql STABLE AS $$
#variable_conflict use_column
DECLARE
    counted date[] := analytics.serving_days(since, until, 'day', zone, organization);
    tables text[] := '{user_activity,endpoint_usage,feature_usage,model_usage}';
BEGIN
    RETURN QUERY EXECUTE format(
        'WITH by_person AS MATERIALIZED (
            SELECT (timestamp AT TIME ZONE $6)::date AS day, organization_id, service_name, deployment_type, user_id,
                sum(weight) AS events, sum(weight) FILTER (WHERE source = ''endpoint_usage'') AS requests,
                sum(weight) FILTER (WHERE source = ''feature_usage'') AS feature_uses,
                sum(weight) FILTER (WHERE source = ''model_usage'') AS model_calls
            FROM (%s) AS uncounted WHERE organization_id IS NOT NULL GROUP BY 1, 2, 3, 4, 5
        ), numbered AS MATERIALIZED (
            SELECT somebody.user_id, coalesce(known.number, 1000000000 + (row_number() OVER ())::integer) AS number
            FROM (SELECT DISTINCT user_id FROM by_person WHERE user_id IS NOT NULL) AS somebody
            LEFT JOIN analytics.people AS known ON known.kind = ''user'' AND known.hash = somebody.user_id
        )
        SELECT counted.day, known.hash, counted.service_name, counted.deployment_type, counted.events, counted.requests,
            counted.feature_uses, counted.model_calls, counted.members
        FROM analytics.day_organizations AS counted JOIN analytics.people AS known ON known.number = counted.organization
        WHERE counted.day = ANY ($5) AND ($3 IS NULL OR counted.service_name = $3)
            AND ($4 IS NULL OR counted.deployment_type = $4)
        UNION ALL
        SELECT day, organization_id, service_name, deployment_type, sum(events), sum(requests), sum(feature_uses),
            sum(model_calls), array_agg(number) FILTER (WHERE number IS NOT NULL)
        FROM by_person LEFT JOIN numbered USING (user_id) GROUP BY 1, 2, 3, 4',
        analytics.uncounted_rows(tables, since, until, counted)
    ) USING tables, organization, service, deployment, counted, zone;
END $$;
