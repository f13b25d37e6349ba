-- What closed days of the four tables add up to. A day in UTC is counted when it is in rolled_days and not in
-- analytics.rollup_marks: whoever changes rows marks their days in the same transaction, so that a day whose sums may be
-- old is read from the rows again.
CREATE TABLE analytics.rolled_days (
    day date PRIMARY KEY,
    rolled_at timestamptz NOT NULL DEFAULT now()
);

COMMENT ON TABLE analytics.rolled_days IS 'Days in UTC whose sums and people are in the three tables beside this one';

CREATE TABLE analytics.people (
    number integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    kind text NOT NULL CHECK (kind IN ('user', 'organization')),
    hash text NOT NULL,
    UNIQUE (kind, hash)
);

COMMENT ON TABLE analytics.people IS 'Numbers for the hashes of the counted days: bit strings and arrays hold numbers';

CREATE TABLE analytics.day_sums (
    day date NOT NULL REFERENCES analytics.rolled_days ON DELETE CASCADE,
    level text NOT NULL CHECK (level IN ('name', 'release')),
    source text NOT NULL,
    name text,
    part text,
    extra text,
    service_name text,
    service_version text,
    deployment_type text,
    weight double precision NOT NULL,
    refused double precision,
    failed double precision,
    input_tokens double precision,
    output_tokens double precision,
    first_at timestamptz NOT NULL,
    last_at timestamptz NOT NULL,
    duration_groups integer[],
    longest double precision[],
    weights double precision[]
);

COMMENT ON TABLE analytics.day_sums IS
    'Weighted sums of a day by name or by release. Three arrays hold the groups of durations: see duration_group';

CREATE INDEX ix_day_sums_day ON analytics.day_sums (day);

CREATE TABLE analytics.day_people (
    day date NOT NULL REFERENCES analytics.rolled_days ON DELETE CASCADE,
    level text NOT NULL CHECK (level IN ('name', 'release')),
    source text NOT NULL,
    name text,
    part text,
    extra text,
    service_name text,
    service_version text,
    deployment_type text,
    chunk integer NOT NULL,
    bits bit(32768) NOT NULL
);

COMMENT ON TABLE analytics.day_people IS
    'Who was seen: bit n of chunk c stands for the person with number 32768 c + n. Source is empty for any table';

CREATE INDEX ix_day_people_day ON analytics.day_people (day);

CREATE TABLE analytics.day_organizations (
    day date NOT NULL REFERENCES analytics.rolled_days ON DELETE CASCADE,
    organization integer NOT NULL,
    service_name text,
    deployment_type text,
    events double precision NOT NULL,
    requests double precision,
    feature_uses double precision,
    model_calls double precision,
    members integer[]
);

COMMENT ON TABLE analytics.day_organizations IS 'What each organization did on a day, and the numbers of its people';

CREATE INDEX ix_day_organizations_day ON analytics.day_organizations (day);

CREATE TABLE analytics.rollup_marks (
    day date
);

COMMENT ON TABLE analytics.rollup_marks IS 'Days in UTC whose rows changed since they were rolled up; NULL for every day';

DO $$
BEGIN
    EXECUTE format(
        'CREATE AGGREGATE analytics.bits(integer, integer) (
            SFUNC = pg_catalog.set_bit, STYPE = bit, COMBINEFUNC = pg_catalog.bitor, PARALLEL = SAFE, INITCOND = %L
        )', 'x' || repeat('0', 8192)
    );
END $$;

COMMENT ON AGGREGATE analytics.bits(integer, integer) IS 'A bit string of 32768 bits with each of the positions set to 1';
