CREATE FUNCTION analytics.freshness() RETURNS TABLE (
    topic text, partitions bigint, complete_until timestamptz, newest_record timestamptz, settled numeric, stored numeric,
    duplicates numeric, suppressed numeric, expired numeric, skipped numeric, dead_lettered numeric,
    dead_letters_waiting bigint, gaps bigint, gaps_open bigint, lost numeric
) LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    SELECT line.topic, count(*), min(line.last_record_time), max(line.last_record_time),
        sum(line.next_offset - line.first_offset), sum(line.stored), sum(line.duplicates), sum(line.suppressed),
        sum(line.expired), sum(line.skipped), sum(line.dead_lettered),
        (SELECT count(*) FROM ingest.dead_letters AS letter
            WHERE letter.topic = line.topic AND letter.redriven_at IS NULL),
        (SELECT count(*) FROM ingest.gaps AS gap WHERE gap.topic = line.topic),
        (SELECT count(*) FROM ingest.gaps AS gap WHERE gap.topic = line.topic AND gap.acknowledged_at IS NULL),
        (SELECT coalesce(sum(gap.to_offset - gap.from_offset), 0) FROM ingest.gaps AS gap
            WHERE gap.topic = line.topic AND gap.reason = 'retention')
    FROM ingest.partition_offsets AS line WHERE line.generation = 'live' GROUP BY line.topic ORDER BY line.topic
$$;

COMMENT ON FUNCTION analytics.freshness IS
    'How complete the tables are, from the ledger: every record that the receiver took up to complete_until has its fate';

CREATE FUNCTION analytics.partitions() RETURNS TABLE (
    topic text, partition integer, settled bigint, newest_record timestamptz, stored bigint, duplicates bigint,
    dead_lettered bigint, suppressed bigint, expired bigint, skipped bigint
) LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    SELECT line.topic, line.partition, line.next_offset - line.first_offset, line.last_record_time, line.stored,
        line.duplicates, line.dead_lettered, line.suppressed, line.expired, line.skipped
    FROM ingest.partition_offsets AS line WHERE line.generation = 'live' ORDER BY 1, 2
$$;

COMMENT ON FUNCTION analytics.partitions IS 'The ledger by partition: each record has exactly one of these fates';

CREATE FUNCTION analytics.gaps() RETURNS TABLE (
    topic text, partition integer, reason text, records bigint, seen_at timestamptz, acknowledged_at timestamptz
) LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    SELECT gap.topic, gap.partition, gap.reason, gap.to_offset - gap.from_offset, gap.seen_at, gap.acknowledged_at
    FROM ingest.gaps AS gap ORDER BY gap.seen_at DESC, gap.id DESC LIMIT 1000
$$;

COMMENT ON FUNCTION analytics.gaps IS
    'Offsets that retention took before they were read (lost), or that the topic itself lost after they were stored (truncated)';

CREATE FUNCTION analytics.dead_letter_reasons() RETURNS TABLE (
    reason text, waiting bigint, redriven bigint, first_seen timestamptz, last_seen timestamptz
) LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    SELECT letter.reason, count(*) FILTER (WHERE letter.redriven_at IS NULL), count(letter.redriven_at),
        min(letter.first_seen_at), max(letter.first_seen_at)
    FROM ingest.dead_letters AS letter GROUP BY 1 ORDER BY 2 DESC, 1
$$;

COMMENT ON FUNCTION analytics.dead_letter_reasons IS 'Dead letters by reason; their contents stay out of a reader''s reach';
