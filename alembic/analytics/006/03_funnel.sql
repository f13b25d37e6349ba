CREATE FUNCTION analytics.step_times(
    step text, since timestamptz, until timestamptz, organization text, service text, deployment text
) RETURNS TABLE (user_id text, at timestamptz) LANGUAGE plpgsql STABLE PARALLEL SAFE SET plan_cache_mode = force_custom_plan AS $$
#variable_conflict use_variable
DECLARE
    name text := substr(step, strpos(step, ':') + 1);
    kind text := CASE WHEN strpos(step, ':') BETWEEN 2 AND length(step) - 1 THEN split_part(step, ':', 1) END;
BEGIN
    CASE kind
    WHEN 'user_activity' THEN
        RETURN QUERY SELECT event.user_id::text, event.timestamp FROM public.user_activity AS event
        WHERE event.timestamp >= since AND event.timestamp < until AND event.event_type = name
            AND (organization IS NULL OR event.organization_id = organization)
            AND (service IS NULL OR event.service_name = service)
            AND (deployment IS NULL OR event.deployment_type = deployment);
    WHEN 'endpoint_usage' THEN
        RETURN QUERY SELECT event.user_id::text, event.timestamp FROM public.endpoint_usage AS event
        WHERE event.timestamp >= since AND event.timestamp < until AND event.user_id IS NOT NULL
            AND name IN (event.endpoint, event.method || ' ' || event.endpoint)
            AND (event.status_code IS NULL OR event.status_code < 400)
            AND (organization IS NULL OR event.organization_id = organization)
            AND (service IS NULL OR event.service_name = service)
            AND (deployment IS NULL OR event.deployment_type = deployment);
    WHEN 'feature_usage' THEN
        RETURN QUERY SELECT event.user_id::text, event.timestamp FROM public.feature_usage AS event
        WHERE event.timestamp >= since AND event.timestamp < until AND event.user_id IS NOT NULL
            AND name IN (event.feature_name, event.feature_name || '/' || event.action)
            AND (organization IS NULL OR event.organization_id = organization)
            AND (service IS NULL OR event.service_name = service)
            AND (deployment IS NULL OR event.deployment_type = deployment);
    WHEN 'model_usage' THEN
        RETURN QUERY SELECT event.user_id::text, event.timestamp FROM public.model_usage AS event
        WHERE event.timestamp >= since AND event.timestamp < until AND event.user_id IS NOT NULL
            AND name IN (event.operation, event.operation || '/' || event.model)
            AND (organization IS NULL OR event.organization_id = organization)
            AND (service IS NULL OR event.service_name = service)
            AND (deployment IS NULL OR event.deployment_type = deployment);
    ELSE
        RAISE invalid_parameter_value USING MESSAGE =
            'a step is table:name, as in feature_usage:export; tables: user_activity, endpoint_usage, feature_usage, model_usage';
    END CASE;
END $$;

CREATE FUNCTION analytics.funnel(
    since timestamptz, until timestamptz, steps text[], within interval DEFAULT '7 days',
    organization text DEFAULT NULL, service text DEFAULT NULL, deployment text DEFAULT NULL,
    smallest_group integer DEFAULT NULL
) RETURNS TABLE (
    step_number integer, step text, people bigint, share_of_first double precision, share_of_previous double precision
)
LANGUAGE plpgsql STABLE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp SET plan_cache_mode = force_custom_plan SET jit = off SET work_mem = '32MB' AS $$
#variable_conflict use_variable
DECLARE
    floor integer := analytics.floored(smallest_group);
    length integer := coalesce(cardinality(steps), 0);
    query text := 'WITH step_1 AS (
        SELECT user_id, at, at AS started_at FROM analytics.step_times($1[1], $2, $3, $5, $6, $7))';
    counts text := 'SELECT 1 AS number, count(DISTINCT user_id) AS people FROM step_1';
BEGIN
    IF length NOT BETWEEN 1 AND 6 THEN
        RAISE invalid_parameter_value USING MESSAGE = 'a funnel has one to six steps';
    END IF;
    IF within <= interval '0' OR within > interval '366 days' THEN
        RAISE invalid_parameter_value USING MESSAGE = 'the window must be above zero and at most 366 days';
    END IF;
    -- The latest start that leads to the step before, strictly earlier: if any start is near enough, that one is.
    FOR n IN 2..length LOOP
        query := query || format('
    , step_%s AS (
        SELECT user_id, at, started_at FROM (
            SELECT user_id, at, is_step, max(started_at) OVER (
                PARTITION BY user_id ORDER BY at
                RANGE BETWEEN UNBOUNDED PRECEDING AND interval ''1 microsecond'' PRECEDING
            ) AS started_at
            FROM (
                SELECT user_id, at, started_at, false AS is_step FROM step_%s
                UNION ALL SELECT user_id, at, NULL, true
                FROM analytics.step_times($1[%s], $2, $3 + $4, $5, $6, $7)
            ) AS both_steps
        ) AS chained WHERE is_step AND at <= started_at + $4
    )', n, n - 1, n);
        counts := counts || format(' UNION ALL SELECT %s, count(DISTINCT user_id) FROM step_%s', n, n);
    END LOOP;
    RETURN QUERY EXECUTE query || ', counted AS (' || counts || ')
        SELECT number, $1[number], analytics.hidden_below(people, $8),
            analytics.hidden_below(people, $8)::double precision
                / nullif(analytics.hidden_below(first_value(people) OVER (ORDER BY number), $8), 0),
            analytics.hidden_below(people, $8)::double precision
                / nullif(analytics.hidden_below(lag(people) OVER (ORDER BY number), $8), 0)
        FROM counted ORDER BY number'
    USING steps, since, until, within, organization, service, deployment, floor;
END $$;

COMMENT ON FUNCTION analytics.funnel IS
    'People who did the steps one after another, the first in the range and the last at most a window later';

CREATE FUNCTION analytics.funnel_steps(
    since timestamptz, until timestamptz, organization text DEFAULT NULL, service text DEFAULT NULL,
    deployment text DEFAULT NULL, smallest_group integer DEFAULT NULL
) RETURNS TABLE (step text, people bigint)
LANGUAGE plpgsql STABLE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp SET plan_cache_mode = force_custom_plan SET jit = off SET work_mem = '32MB' AS $$
#variable_conflict use_variable
BEGIN
    RETURN QUERY
    WITH activities AS (
        SELECT event.event_type, event.user_id FROM public.user_activity AS event
        WHERE event.timestamp >= since AND event.timestamp < until AND event.user_id IS NOT NULL
            AND (organization IS NULL OR event.organization_id = organization)
            AND (service IS NULL OR event.service_name = service)
            AND (deployment IS NULL OR event.deployment_type = deployment)
        GROUP BY 1, 2
    ), requests AS (
        SELECT event.endpoint, event.method, event.user_id FROM public.endpoint_usage AS event
        WHERE event.timestamp >= since AND event.timestamp < until AND event.user_id IS NOT NULL
            AND (event.status_code IS NULL OR event.status_code < 400)
            AND (organization IS NULL OR event.organization_id = organization)
            AND (service IS NULL OR event.service_name = service)
            AND (deployment IS NULL OR event.deployment_type = deployment)
        GROUP BY 1, 2, 3
    ), features AS (
        SELECT event.feature_name, event.action, event.user_id FROM public.feature_usage AS event
        WHERE event.timestamp >= since AND event.timestamp < until AND event.user_id IS NOT NULL
            AND (organization IS NULL OR event.organization_id = organization)
            AND (service IS NULL OR event.service_name = service)
            AND (deployment IS NULL OR event.deployment_type = deployment)
        GROUP BY 1, 2, 3
    ), calls AS (
        SELECT event.operation, event.model, event.user_id FROM public.model_usage AS event
        WHERE event.timestamp >= since AND event.timestamp < until AND event.user_id IS NOT NULL
            AND (organization IS NULL OR event.organization_id = organization)
            AND (service IS NULL OR event.service_name = service)
            AND (deployment IS NULL OR event.deployment_type = deployment)
        GROUP BY 1, 2, 3
    ), counted (step, people) AS (
        SELECT 'user_activity:' || did.event_type, count(*) FROM activities AS did GROUP BY 1
        UNION ALL SELECT 'endpoint_usage:' || coalesce(did.method || ' ', '') || did.endpoint, count(*)
        FROM requests AS did GROUP BY 1
        UNION ALL SELECT 'feature_usage:' || did.feature_name || coalesce('/' || did.action, ''), count(*)
        FROM features AS did GROUP BY 1
        UNION ALL SELECT 'model_usage:' || did.operation || coalesce('/' || did.model, ''), count(*)
        FROM calls AS did GROUP BY 1
    )
    SELECT counted.step, counted.people FROM counted
    WHERE counted.people >= analytics.floored(smallest_group) ORDER BY 2 DESC, 1 LIMIT 200;
END $$;

COMMENT ON FUNCTION analytics.funnel_steps IS 'The steps that a funnel can be made of, by how many people did them';
