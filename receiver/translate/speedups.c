/* A request -> where its spans are; spans -> those that may be events; spans made of nothing but what was seen before ->
   their records. Called by speedups.py, of which this is the inside.

   Nothing is decided here. The short way (fast_path.py) tells what an attribute became and what follows from a span's
   shape; this remembers both by their bytes and repeats them. A span of which any part is new, odd or in doubt is left
   undecided, and so is a request. Never reads or writes beyond what it is given, or fails: whatever the bytes are. */

#define _GNU_SOURCE /* memmem */
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum { WAYS = 8, ATTRIBUTES_MAX = 64, ATTRIBUTE_BYTES_MAX = 256, TAG_MAX = 0x3FFF };
/* Verdicts; what is not below zero is a table's number. */
enum { UNDECIDED = -1, UNKNOWN = -2, UNREAD = -3, UNPLANNED = -4, NOT_PRODUCT_EVENT = -5, EXCLUDED_ENDPOINT = -6 };
enum { SPAN_KIND_SERVER = 2 };
enum { VARINT = 0, FIXED64 = 1, BYTES = 2, FIXED32 = 5 }; /* protobuf's types */
enum { KEYS_MAX = 4, KEY_BYTES_MAX = 32, MOVES = 4096 };

typedef struct {
    const uint8_t *at;
    size_t size;
} Bytes;

/* What an attribute became. */
typedef struct {
    uint64_t place;
    int32_t text_size; /* -1: there is no text yet */
    uint32_t own_size, own_times;
    uint32_t is_excluded; /* an endpoint */
    uint32_t is_path;     /* of a key: digits between slashes are the same as any other */
    uint8_t bytes[];      /* the text, then the raw id */
} Piece;

/* A part of a record: the text of that attribute of the span; if that is -1, bytes of the plan's own. */
typedef struct {
    int32_t attribute;
    uint32_t at, size;
} Part;

/* What follows from a shape. Its parts: the beginning; columns; metadata; the end; owners' ids; words that may be ids.
   Behind them stand the plan's own bytes. */
typedef struct {
    int32_t verdict;
    int32_t endpoint; /* the attribute that may exclude the span, or -1 */
    uint32_t is_timed;
    uint32_t columns, metadata, owners, words;
    Part parts[];
} Plan;

/* What a span became. `wanted` has a bit for each attribute that is unknown, or unread. */
typedef struct {
    uint64_t wanted;
    int32_t verdict;
    uint32_t id_at, at, size; /* of the record in `out` */
} Answer;

/* ---- memory: keys -> values, so many at most; of eight in a set, one that was not asked for lately goes first */

typedef struct {
    uint32_t key_size, value_at;
    uint8_t bytes[]; /* the key; on the next multiple of eight the value */
} Entry;

typedef struct {
    uint32_t tags[WAYS]; /* parts of hashes, so that few entries are looked at */
    bool are_recent[WAYS];
    uint8_t next; /* to be forgotten, unless it is recent */
    Entry *entries[WAYS]; /* NULL: free */
} Set;

typedef struct {
    Set *sets;
    uint64_t size, seed; /* size: a power of two */
} Cache;

/* Keys to be searched for, all at once, as Wu and Manber do: two bytes tell how far a window may move that ends there. */
typedef struct {
    size_t count, window;
    struct {
        size_t size;
        uint8_t bytes[KEY_BYTES_MAX];
    } keys[KEYS_MAX];
    uint8_t moves[MOVES];
} Marks;

typedef struct {
    Cache pieces, of_keys, of_paths, plans;
    Marks marks;
    size_t span_bytes_max; /* of one that is decided */
} Memory;

/* Where a key is, if it is there. */
typedef struct {
    Set *set;
    Bytes key;
    uint32_t tag;
} Probe;

static Probe probe(const Cache *cache, Bytes key) {
    uint64_t hash = cache->seed ^ key.size * 0x9E3779B97F4A7C15u, word;
    for (size_t at = 0, taken; at < key.size; at += taken) {
        taken = key.size - at < 8 ? key.size - at : 8;
        word = 0;
        memcpy(&word, key.at + at, taken);
        hash = (hash ^ word) * 0xD6E8FEB86659FD93u;
        hash ^= hash >> 32;
    }
    hash *= 0x9E3779B97F4A7C15u;
    return (Probe){cache->sets + (hash >> 32 & (cache->size - 1)), key, (uint32_t)hash};
}

static int way_of(const Probe *probe) {
    for (int way = 0; way < WAYS; way++) {
        const Entry *entry = probe->set->entries[way];
        if (probe->set->tags[way] == probe->tag && entry && entry->key_size == probe->key.size &&
            !memcmp(entry->bytes, probe->key.at, probe->key.size))
            return way;
    }
    return -1;
}

static const void *found(const Probe *probe) {
    int way = way_of(probe);
    if (way < 0)
        return NULL;
    probe->set->are_recent[way] = true;
    return (const uint8_t *)probe->set->entries[way] + probe->set->entries[way]->value_at;
}

static const void *find(const Cache *cache, Bytes key) {
    Probe at = probe(cache, key);
    return found(&at);
}

static int room_in(Set *set) {
    for (int way = 0; way < WAYS; way++)
        if (!set->entries[way])
            return way;
    while (set->are_recent[set->next % WAYS]) /* asked for since it was last come by: it stays for another round */
        set->are_recent[set->next++ % WAYS] = false;
    return set->next++ % WAYS;
}

static void put(Cache *cache, Bytes key, Bytes value) {
    Probe at = probe(cache, key);
    size_t value_at = (sizeof(Entry) + key.size + 7) / 8 * 8;
    Entry *entry = malloc(value_at + value.size);
    if (!entry)
        return;
    *entry = (Entry){(uint32_t)key.size, (uint32_t)value_at};
    memcpy(entry->bytes, key.at, key.size);
    memcpy((uint8_t *)entry + value_at, value.at, value.size);
    int way = way_of(&at);
    if (way < 0)
        way = room_in(at.set);
    free(at.set->entries[way]);
    at.set->entries[way] = entry;
    at.set->tags[way] = at.tag;
}

/* ---- protobuf, as far as plain spans use it; false where they do not */

static bool read_varint(Bytes *from, uint64_t *number) {
    *number = 0;
    for (int shift = 0; shift < 35; shift += 7) {
        if (!from->size)
            return false;
        uint8_t byte = *from->at;
        from->at++, from->size--;
        *number |= (uint64_t)(byte & 0x7F) << shift;
        if (byte < 0x80)
            return true;
    }
    return false;
}

static bool take(Bytes *from, uint64_t size, Bytes *taken) {
    if (size > from->size)
        return false;
    *taken = (Bytes){from->at, size};
    from->at += size, from->size -= size;
    return true;
}

/* `number` is a varint's, and `held` what a field of any other type holds. */
typedef struct {
    uint64_t tag, number;
    Bytes held;
} Field;

static bool read_field(Bytes *from, Field *field) {
    uint64_t size;
    if (!read_varint(from, &field->tag) || !(field->tag >> 3) || field->tag > TAG_MAX)
        return false;
    switch (field->tag & 7) {
    case VARINT:
        return read_varint(from, &field->number);
    case FIXED64:
        return take(from, 8, &field->held);
    case BYTES:
        return read_varint(from, &size) && take(from, size, &field->held);
    case FIXED32:
        return take(from, 4, &field->held);
    default:
        return false;
    }
}

static uint64_t fixed64(Bytes from) { /* as it stands on the wire: the least byte first */
    uint64_t number = 0;
    for (int at = 7; at >= 0; at--)
        number = number << 8 | from.at[at];
    return number;
}

typedef struct {
    Bytes trace_id, span_id, attributes[ATTRIBUTES_MAX];
    uint64_t kind, start_ns, end_ns;
    int count;
} Span;

static bool read_span(Bytes from, Span *span) {
    Field field;
    *span = (Span){.count = 0};
    while (from.size) {
        if (!read_field(&from, &field))
            return false;
        switch (field.tag) {
        case 1 << 3 | BYTES:
            span->trace_id = field.held;
            break;
        case 2 << 3 | BYTES:
            span->span_id = field.held;
            break;
        case 6 << 3 | VARINT:
            span->kind = field.number & 0xFFFFFFFF;
            break;
        case 7 << 3 | FIXED64:
            span->start_ns = fixed64(field.held);
            break;
        case 8 << 3 | FIXED64:
            span->end_ns = fixed64(field.held);
            break;
        case 9 << 3 | BYTES:
            if (span->count == ATTRIBUTES_MAX)
                return false;
            span->attributes[span->count++] = field.held;
            break;
        default: /* passed over; but not one of those above in another dress */
            if (field.tag >> 3 == 1 || field.tag >> 3 == 2 || (field.tag >> 3 >= 6 && field.tag >> 3 <= 9))
                return false;
        }
    }
    return true;
}

/* ---- requests. As numbers of 32 bits, for each group with spans: where its resource is, how long that is, how many
   spans there are, and of each of them where it is and how long. */

typedef struct {
    const uint8_t *body;
    uint32_t *at, *end;
    size_t spans, pieces; /* that there may still be */
} Cut;

static bool read_piece(Cut *cut, Bytes *from, Field *field) {
    if (!cut->pieces)
        return false;
    cut->pieces--;
    return read_field(from, field);
}

static bool cut_scope(Cut *cut, Bytes scope, uint32_t *spans) {
    Field field;
    while (scope.size) {
        if (!read_piece(cut, &scope, &field))
            return false;
        if (field.tag != (2 << 3 | BYTES))
            continue;
        if (*spans == cut->spans || cut->end - cut->at < 2)
            return false;
        *cut->at++ = (uint32_t)(field.held.at - cut->body);
        *cut->at++ = (uint32_t)field.held.size;
        ++*spans;
    }
    return true;
}

static bool cut_group(Cut *cut, Bytes group) {
    Field field;
    Bytes resource = {cut->body, 0};
    uint32_t *head = cut->at, spans = 0;
    bool has_resource = false;
    if (cut->end - cut->at < 3)
        return false;
    cut->at += 3;
    while (group.size) {
        if (!read_piece(cut, &group, &field))
            return false;
        if (field.tag == (2 << 3 | BYTES) && !cut_scope(cut, field.held, &spans))
            return false;
        if (field.tag != (1 << 3 | BYTES))
            continue;
        if (has_resource) /* the two would have to be joined */
            return false;
        resource = field.held, has_resource = true;
    }
    head[0] = (uint32_t)(resource.at - cut->body), head[1] = (uint32_t)resource.size, head[2] = spans;
    cut->spans -= spans;
    if (!spans)
        cut->at = head;
    return true;
}

/* ---- keys in spans */

static size_t pair_of(const uint8_t *last) { return ((size_t)last[-1] << 5 ^ last[0]) % MOVES; }

static bool is_marked(const Marks *marks, Bytes in) {
    for (size_t last = marks->window - 1, move; last < in.size; last += move ? move : 1) {
        move = marks->moves[pair_of(in.at + last)];
        size_t start = last + 1 - marks->window;
        for (size_t key = 0; !move && key < marks->count; key++)
            if (marks->keys[key].size <= in.size - start &&
                !memcmp(marks->keys[key].bytes, in.at + start, marks->keys[key].size))
                return true;
    }
    return false;
}

/* Whether bytes are a well-formed value: a text with a length of one byte, an int of up to nine, or a double. */
static bool is_scalar(const uint8_t *value, size_t size) {
    switch (value[0]) {
    case 1 << 3 | BYTES:
        return value[1] == size - 2;
    case 3 << 3 | VARINT:
        for (size_t at = 1; at < size - 1; at++)
            if (value[at] < 0x80)
                return false;
        return size <= 10 && value[size - 1] < 0x80;
    default:
        return value[0] == (4 << 3 | FIXED64) && size == 9;
    }
}

/* The key of an attribute of which the value is such; empty for any other. As in pieces.py. */
static Bytes key_of_scalar(Bytes raw) {
    const uint8_t *at = raw.at;
    if (raw.size >= 2 && at[0] == 0x0A && at[1] + 6u <= raw.size) {
        size_t value_at = at[1] + 2u, size = raw.size - value_at - 2;
        if (value_at < 0x80 && size < 0x80 && at[value_at] == 0x12 && at[value_at + 1] == size &&
            is_scalar(at + value_at + 2, size))
            return (Bytes){at + 2, at[1]};
    }
    return (Bytes){at, 0};
}

static bool is_text_of(Bytes key) { return key.at[key.size + 2] == (1 << 3 | BYTES); }

/* A key with its size, and its text with one 0 for all digits that stand alone between slashes. */
static Bytes without_numbers(Bytes key, Bytes raw, uint8_t into[ATTRIBUTE_BYTES_MAX]) {
    const uint8_t *start = key.at + key.size + 4, *end = raw.at + raw.size, *from = start, *after;
    uint8_t *to = into + 1 + key.size;
    memcpy(into, key.at - 1, 1 + key.size);
    while (from < end) {
        for (after = from; from > start && from[-1] == '/' && after < end && *after >= '0' && *after <= '9'; after++)
            ;
        bool is_number = after > from && (after == end || *after == '/');
        *to++ = is_number ? '0' : *from;
        from = is_number ? after : from + 1;
    }
    return (Bytes){into, (size_t)(to - into)};
}

/* ---- records */

typedef struct {
    uint8_t *at;
    size_t room;
    bool is_full;
} Out;

static void write_bytes(Out *out, const void *from, size_t size) {
    if (size > out->room) {
        out->is_full = true;
        return;
    }
    memcpy(out->at, from, size);
    out->at += size, out->room -= size;
}

#define WRITE(out, literal) write_bytes(out, literal, sizeof literal - 1)

static void write_number(Out *out, uint64_t number, int digits_min) {
    uint8_t digits[20], *at = digits + sizeof digits;
    do
        *--at = (uint8_t)('0' + number % 10), number /= 10, digits_min--;
    while (number || digits_min > 0);
    write_bytes(out, at, (size_t)(digits + sizeof digits - at));
}

/* The shortest text of the double nearest to so many milliseconds: up to 15 digits it is the decimal number itself. */
static bool write_duration(Out *out, uint64_t duration_ns) {
    if ((duration_ns && duration_ns < 100) || duration_ns >= 1000000000000000u)
        return false;
    uint64_t fraction = duration_ns % 1000000;
    int digits = 6;
    while (digits > 1 && fraction % 10 == 0)
        fraction /= 10, digits--;
    WRITE(out, ",\"duration_ms\":");
    write_number(out, duration_ns / 1000000, 1);
    WRITE(out, ".");
    write_number(out, fraction, digits);
    return true;
}

static const uint32_t SHA256_ROUNDS[64] = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5, 0xd807aa98, 0x12835b01,
    0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174, 0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc,
    0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da, 0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147,
    0x06ca6351, 0x14292967, 0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
    0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070, 0x19a4c116, 0x1e376c08,
    0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3, 0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208,
    0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2};

static uint32_t turned(uint32_t word, int by) { return word >> by | word << (32 - by); }

/* FIPS 180-4, of the 24 bytes of trace and span id: one block. The first 16 bytes of the digest. */
static void sha256_of_ids(const uint8_t *trace_id, const uint8_t *span_id, uint8_t digest[16]) {
    static const uint32_t start[8] = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
                                      0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
    uint8_t block[64] = {[24] = 0x80, [63] = 24 * 8};
    uint32_t w[64];
    memcpy(block, trace_id, 16);
    memcpy(block + 16, span_id, 8);
    for (int i = 0; i < 16; i++)
        w[i] = (uint32_t)block[4 * i] << 24 | block[4 * i + 1] << 16 | block[4 * i + 2] << 8 | block[4 * i + 3];
    for (int i = 16; i < 64; i++)
        w[i] = w[i - 16] + (turned(w[i - 15], 7) ^ turned(w[i - 15], 18) ^ w[i - 15] >> 3) + w[i - 7] +
               (turned(w[i - 2], 17) ^ turned(w[i - 2], 19) ^ w[i - 2] >> 10);
    uint32_t a = start[0], b = start[1], c = start[2], d = start[3];
    uint32_t e = start[4], f = start[5], g = start[6], h = start[7];
    for (int i = 0; i < 64; i++) {
        uint32_t first =
            h + (turned(e, 6) ^ turned(e, 11) ^ turned(e, 25)) + ((e & f) ^ (~e & g)) + SHA256_ROUNDS[i] + w[i];
        uint32_t second = (turned(a, 2) ^ turned(a, 13) ^ turned(a, 22)) + ((a & b) ^ (a & c) ^ (b & c));
        h = g, g = f, f = e, e = d + first;
        d = c, c = b, b = a, a = first + second;
    }
    uint32_t words[4] = {a + start[0], b + start[1], c + start[2], d + start[3]};
    for (int i = 0; i < 16; i++)
        digest[i] = (uint8_t)(words[i / 4] >> (24 - 8 * (i % 4)));
}

/* The text of `event_id`: a UUID of version 8. */
static void write_id(Out *out, const Span *span) {
    static const char hex[] = "0123456789abcdef";
    uint8_t digest[16], text[36], *at = text;
    sha256_of_ids(span->trace_id.at, span->span_id.at, digest);
    digest[6] = (digest[6] & 0x0F) | 0x80;
    digest[8] = (digest[8] & 0x3F) | 0x80;
    for (int i = 0; i < 16; i++) {
        if (i == 4 || i == 6 || i == 8 || i == 10)
            *at++ = '-';
        *at++ = (uint8_t)hex[digest[i] >> 4];
        *at++ = (uint8_t)hex[digest[i] & 0xF];
    }
    write_bytes(out, text, sizeof text);
}

static bool is_id(Bytes id, size_t size) {
    static const uint8_t none[16];
    return id.size == size && memcmp(id.at, none, size);
}

/* Whether an id stands in the bytes more often than so. */
static bool is_more_often(Bytes id, Bytes in, uint32_t times) {
    const uint8_t *end = in.at + in.size;
    for (const uint8_t *at = in.at; (at = memmem(at, (size_t)(end - at), id.at, id.size)); at += id.size)
        if (!times--)
            return true;
    return false;
}

static const Part *owners_of(const Plan *plan) { return plan->parts + plan->columns + plan->metadata + 2; }

static Bytes own_bytes(const Plan *plan, Part part) {
    const Part *end = owners_of(plan) + plan->owners + plan->words;
    return (Bytes){(const uint8_t *)end + part.at, part.size};
}

static Bytes text_of(const Plan *plan, Part part, const Piece *const *pieces) {
    if (part.attribute < 0)
        return own_bytes(plan, part);
    const Piece *piece = pieces[part.attribute];
    return (Bytes){piece->bytes, (size_t)piece->text_size};
}

/* Whether an owner's id may stand elsewhere in the span, or in its resource. */
static bool is_owner_in_doubt(const Plan *plan, const Piece *const *pieces, Bytes raw) {
    const Part *owners = owners_of(plan), *words = owners + plan->owners;
    for (const Part *owner = owners; owner < words; owner++) {
        const Piece *piece = owner->attribute < 0 ? NULL : pieces[owner->attribute];
        Bytes id = piece ? (Bytes){piece->bytes + piece->text_size, piece->own_size} : own_bytes(plan, *owner);
        if (!id.size)
            continue;
        if (is_more_often(id, raw, piece ? piece->own_times : 0))
            return true;
        for (const Part *word = words; word < words + plan->words; word++)
            if (word->size == id.size && !memcmp(own_bytes(plan, *word).at, id.at, id.size))
                return true;
    }
    return false;
}

/* The attributes that the plan needs the text or the id of, and that have none yet. */
static uint64_t without_text(const Plan *plan, const Piece *const *pieces) {
    uint64_t unread = 0;
    const Part *end = owners_of(plan) + plan->owners;
    for (const Part *part = plan->parts; part < end; part++)
        if (part->attribute >= 0 && pieces[part->attribute]->text_size < 0)
            unread |= (uint64_t)1 << part->attribute;
    return unread;
}

static void write_parts(Out *out, const Plan *plan, const Part *part, const Part *end, const Piece *const *pieces) {
    for (; part < end; part++) {
        Bytes text = text_of(plan, *part, pieces);
        write_bytes(out, text.at, text.size);
    }
}

static bool write_record(Out *out, const Plan *plan, const Piece *const *pieces, const Span *span, Answer *answer) {
    const Part *columns = plan->parts + 1, *metadata = columns + plan->columns, *end = metadata + plan->metadata;
    Bytes text = own_bytes(plan, *plan->parts);
    write_bytes(out, text.at, text.size);
    answer->id_at = (uint32_t)text.size;
    write_id(out, span);
    WRITE(out, "\",\"timestamp_us\":");
    write_number(out, span->start_ns / 1000, 1);
    write_parts(out, plan, columns, metadata, pieces);
    bool is_timed = plan->is_timed && span->end_ns && span->end_ns >= span->start_ns;
    if (is_timed && !write_duration(out, span->end_ns - span->start_ns))
        return false;
    WRITE(out, ",\"event_metadata\":{");
    write_parts(out, plan, metadata, end, pieces);
    text = own_bytes(plan, *end);
    if (!text.size && !out->is_full && out->at[-1] == ',')
        out->at--, out->room++;
    write_bytes(out, text.at, text.size);
    WRITE(out, "}}");
    return !out->is_full;
}

static const Piece *piece_of(const Memory *memory, const Probe *known) {
    const Piece *piece = found(known), *of_path = NULL;
    Bytes raw = known->key, key;
    if (piece || !(key = key_of_scalar(raw)).size)
        return piece;
    piece = find(&memory->of_keys, key);
    if (piece && piece->is_path && is_text_of(key)) {
        uint8_t path[ATTRIBUTE_BYTES_MAX];
        of_path = find(&memory->of_paths, without_numbers(key, raw, path));
    }
    return of_path ? of_path : piece;
}

static Answer answer_of(const Memory *memory, uint64_t resource, Bytes raw, Out *out) {
    Answer answer = {.verdict = UNDECIDED};
    Span span;
    const Piece *pieces[ATTRIBUTES_MAX];
    Probe known[ATTRIBUTES_MAX];
    struct {
        uint64_t resource;
        uint64_t places[ATTRIBUTES_MAX];
    } shape = {.resource = resource};
    if (raw.size > memory->span_bytes_max || !read_span(raw, &span))
        return answer;
    for (int at = 0; at < span.count; at++) {
        known[at] = probe(&memory->pieces, span.attributes[at]);
        __builtin_prefetch(known[at].set->tags);
        __builtin_prefetch(known[at].set->entries + WAYS - 1);
    }
    for (int at = 0; at < span.count; at++) {
        pieces[at] = piece_of(memory, &known[at]);
        if (pieces[at])
            shape.places[at] = pieces[at]->place;
        else
            answer.wanted |= (uint64_t)1 << at;
    }
    if (answer.wanted) {
        answer.verdict = UNKNOWN;
        return answer;
    }
    size_t shape_size = sizeof shape.resource + sizeof *shape.places * (size_t)span.count;
    const Plan *plan = find(&memory->plans, (Bytes){(uint8_t *)&shape, shape_size});
    if (!plan) {
        answer.verdict = UNPLANNED;
        return answer;
    }
    if (plan->verdict < 0 || (plan->endpoint >= 0 && span.kind != SPAN_KIND_SERVER)) {
        answer.verdict = plan->verdict < 0 ? plan->verdict : NOT_PRODUCT_EVENT;
        return answer;
    }
    if ((answer.wanted = without_text(plan, pieces))) {
        answer.verdict = UNREAD;
        return answer;
    }
    if (is_owner_in_doubt(plan, pieces, raw))
        return answer;
    if (plan->endpoint >= 0 && pieces[plan->endpoint]->is_excluded) {
        answer.verdict = EXCLUDED_ENDPOINT;
        return answer;
    }
    Out record = *out;
    if (!is_id(span.trace_id, 16) || !is_id(span.span_id, 8) || !write_record(&record, plan, pieces, &span, &answer))
        return answer;
    answer.verdict = plan->verdict;
    answer.size = (uint32_t)(record.at - out->at);
    *out = record;
    return answer;
}

/* ---- what speedups.py calls */

/* The hash of this file, as it was when it was compiled. */
const char *speedups_source(void) { return SOURCE; }

static bool make(Cache *cache, uint64_t entries, uint64_t seed) {
    *cache = (Cache){calloc(entries / WAYS, sizeof(Set)), entries / WAYS, seed};
    return cache->sets;
}

static void forget(Cache *cache) {
    for (uint64_t at = 0; cache->sets && at < cache->size * WAYS; at++)
        free(cache->sets[at / WAYS].entries[at % WAYS]);
    free(cache->sets);
}

void speedups_free(Memory *memory) {
    forget(&memory->pieces), forget(&memory->of_keys), forget(&memory->of_paths), forget(&memory->plans);
    free(memory);
}

/* Numbers of entries are powers of two from 8 on. NULL: no memory. */
Memory *speedups_new(size_t span_bytes_max, uint64_t pieces, uint64_t keys, uint64_t paths, uint64_t plans,
                     uint64_t seed) {
    Memory *memory = calloc(1, sizeof *memory);
    if (memory)
        memory->span_bytes_max = span_bytes_max;
    if (memory && make(&memory->pieces, pieces, seed) && make(&memory->of_keys, keys, seed) &&
        make(&memory->of_paths, paths, seed) && make(&memory->plans, plans, seed))
        return memory;
    if (memory)
        speedups_free(memory);
    return NULL;
}

void speedups_know(Memory *memory, const uint8_t *raw, size_t raw_size, const uint8_t *piece, size_t size) {
    put(&memory->pieces, (Bytes){raw, raw_size}, (Bytes){piece, size});
}

void speedups_know_key(Memory *memory, const uint8_t *key, size_t key_size, const uint8_t *piece, size_t size) {
    put(&memory->of_keys, (Bytes){key, key_size}, (Bytes){piece, size});
}

/* A path with its key, as `without_numbers` has them. */
void speedups_know_path(Memory *memory, const uint8_t *path, size_t path_size, const uint8_t *piece, size_t size) {
    put(&memory->of_paths, (Bytes){path, path_size}, (Bytes){piece, size});
}

/* A shape: the resource's number, then those of the places. */
void speedups_know_shape(Memory *memory, const uint8_t *shape, size_t shape_size, const uint8_t *plan, size_t size) {
    put(&memory->plans, (Bytes){shape, shape_size}, (Bytes){plan, size});
}

/* What marks a span: keys of two bytes and more. False: too many, or of another length. */
bool speedups_know_marks(Memory *memory, const uint8_t *keys, const size_t *sizes, size_t count) {
    Marks *marks = &memory->marks;
    *marks = (Marks){.count = count, .window = KEY_BYTES_MAX};
    if (!count || count > KEYS_MAX)
        return false;
    for (size_t key = 0; key < count; keys += sizes[key++]) {
        if (sizes[key] < 2 || sizes[key] > KEY_BYTES_MAX)
            return false;
        marks->keys[key].size = sizes[key];
        memcpy(marks->keys[key].bytes, keys, sizes[key]);
        marks->window = sizes[key] < marks->window ? sizes[key] : marks->window;
    }
    memset(marks->moves, (int)marks->window - 1, sizeof marks->moves);
    for (size_t key = 0; key < count; key++)
        for (size_t last = 1; last < marks->window; last++) {
            uint8_t *move = &marks->moves[pair_of(marks->keys[key].bytes + last)];
            size_t to_the_end = marks->window - 1 - last;
            *move = to_the_end < *move ? (uint8_t)to_the_end : *move;
        }
    return true;
}

/* Where a request's groups and spans are, as `Cut` has them: how many numbers that takes. SIZE_MAX: undecided. */
size_t speedups_cut(const uint8_t *body, size_t size, size_t spans_max, size_t pieces_max, uint32_t *into, size_t room) {
    Cut cut = {body, into, into + room, spans_max, pieces_max};
    Bytes rest = {body, size};
    Field field;
    while (rest.size && size <= UINT32_MAX) {
        if (!read_piece(&cut, &rest, &field) || (field.tag == (1 << 3 | BYTES) && !cut_group(&cut, field.held)))
            return SIZE_MAX;
    }
    return rest.size ? SIZE_MAX : (size_t)(cut.at - into);
}

/* The places of those spans that are marked: how many there are. */
size_t speedups_marked(const Memory *memory, const uint8_t *body, const uint32_t *places, size_t count, uint32_t *marked) {
    size_t found = 0;
    for (const uint32_t *place = places; place < places + 2 * count; place += 2)
        if (is_marked(&memory->marks, (Bytes){body + place[0], place[1]})) {
            memcpy(marked + 2 * found, place, 2 * sizeof *place);
            found++;
        }
    return found;
}

/* One answer for each of the spans. Gives how much of `out` their records take. */
size_t speedups_records(const Memory *memory, uint64_t resource, const uint8_t *body, const uint32_t *places,
                        size_t count, uint8_t *out, size_t room, Answer *answers) {
    Out rest = {out, room, false};
    for (size_t span = 0; span < count; span++) {
        uint8_t *at = rest.at;
        answers[span] = answer_of(memory, resource, (Bytes){body + places[2 * span], places[2 * span + 1]}, &rest);
        answers[span].at = (uint32_t)(at - out);
        answers[span].id_at += answers[span].at;
    }
    return (size_t)(rest.at - out);
}
