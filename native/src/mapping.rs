//! The mapping and the limits, which Python passes as data. Nothing here knows what a column means.

use std::sync::Arc;

use aho_corasick::{AhoCorasick, MatchKind, packed};

/// How the value of a column is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Text as it is, at most so many code points.
    Text(usize),
    /// An id, stored as its hash and nowhere else.
    HashedId,
    /// A path; a placeholder replaces each segment that is an id.
    Path(usize),
    /// Letters, in upper case.
    Token(usize),
    /// An integer within bounds.
    Integer(i64, i64),
    /// A finite number of 0 or more.
    Number,
    /// Of a kind that only the reference knows.
    Judged,
}

/// Where a path comes from, and so how much of it may be a template already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// A value that is no path.
    Any,
    /// A value that only the reference reads.
    Judged,
    Route,
    Path,
}

#[derive(Debug, Clone)]
pub struct Column {
    pub kind: Kind,
    /// A span without a value takes the value of another span of its trace.
    pub is_inherited: bool,
    /// Without a `Route` value, the name of a SERVER span, `METHOD /path`, gives the value.
    pub is_named_by_span: bool,
}

/// What a key says about its value.
#[derive(Debug, Clone, Default)]
pub struct Role {
    /// Column, rank among the column's keys, form.
    pub columns: Vec<(usize, u32, Form)>,
    /// Bits of the conditions that ask for this key.
    pub conditions: u64,
    pub metadata: Option<MetadataRole>,
    /// The reference reads values of this key.
    pub is_declined: bool,
}

/// A key that the allow-list names.
#[derive(Debug, Clone)]
pub struct MetadataRole {
    /// The name as it stands in the record: `"name":`
    pub prefix: Arc<[u8]>,
    /// A hash of the prefix: equal for keys that give the same name.
    pub name: u64,
    pub keeps_text: bool,
    pub keeps_number: bool,
    pub keeps_bool: bool,
}

/// Where the value of a field of a record comes from.
#[derive(Debug, Clone)]
pub enum Source {
    EventId,
    TimestampUs,
    TraceId,
    Metadata,
    /// The value for a span without a sampling threshold.
    Weight(Vec<u8>),
    Column {
        column: usize,
        is_required: bool,
        default: Option<Vec<u8>>,
        is_duration: bool,
    },
}

#[derive(Debug, Clone)]
pub struct Field {
    /// `"name":`
    pub prefix: Vec<u8>,
    pub source: Source,
}

#[derive(Debug, Clone)]
pub struct Table {
    pub name: String,
    /// `{"schema_version":..,"table":"..",` as every record of the table begins.
    pub prefix: Vec<u8>,
    pub fields: Vec<Field>,
    /// A record's headers, as Kafka encodes them.
    pub headers: Vec<u8>,
}

/// One condition for an event. Conditions are tried in order; the first one that holds decides.
#[derive(Debug, Clone)]
pub struct Inference {
    pub needs_server: bool,
    /// Bits of keys: at least one is present.
    pub any_of: u64,
    /// Bits of keys: each is present.
    pub all_of: u64,
    pub outcome: Inferred,
}

#[derive(Debug, Clone)]
pub enum Inferred {
    /// This table, unless this column matches an exclusion.
    Table(usize, Option<usize>),
    /// The reference decides.
    Reference,
}

/// A pattern of `METADATA_ATTRIBUTES` or `ENDPOINT_EXCLUDE` style: `*` is any text.
#[derive(Debug, Clone)]
pub struct Glob {
    parts: Vec<Vec<u8>>,
}

impl Glob {
    #[must_use]
    pub fn new(pattern: &str) -> Self {
        Self { parts: pattern.split('*').map(|part| part.as_bytes().to_vec()).collect() }
    }

    #[must_use]
    pub fn matches(&self, text: &[u8]) -> bool {
        let (first, rest) = self.parts.split_first().expect("split gives at least one part");
        let Some((last, middle)) = rest.split_last() else {
            return text == first.as_slice();
        };
        let Some(mut text) = text.strip_prefix(first.as_slice()) else {
            return false;
        };
        for part in middle {
            match memchr::memmem::find(text, part) {
                Some(at) => text = &text[at + part.len()..],
                None => return false,
            }
        }
        text.ends_with(last)
    }
}

/// How an id becomes its hash.
#[derive(Clone)]
pub struct Hashing {
    /// HMAC under this key; none: SHA-256.
    pub key: Option<Vec<u8>>,
    /// Texts that are hashes already pass as they are.
    pub is_prehashed: bool,
}

#[derive(Clone)]
pub struct Mapping {
    pub columns: Vec<Column>,
    pub tables: Vec<Table>,
    /// The column that names a table outright, if any.
    pub category: Option<usize>,
    pub inferences: Vec<Inference>,
    pub exclusions: Vec<Glob>,
    pub hashing: Hashing,
    /// The placeholder for a segment that is an id.
    pub placeholder: Vec<u8>,
    pub span_bytes_max: usize,
    pub span_attributes_max: usize,
    pub metadata_keys_max: usize,
    pub metadata_chars_max: usize,
    pub spans_max: usize,
    pub fields_max: usize,
    /// Columns whose paths are counted, each with the column by which they are counted. Both are written `"name":`.
    pub counted: Vec<(Vec<u8>, Vec<u8>)>,
    /// The wildcard segment in a stored path.
    pub wildcard: Vec<u8>,
    /// The deciding keys. A span is no event when neither its bytes nor its resource hold one.
    pub deciding: Finder,
    pub shared: Arc<SharedKeys>,
    /// A text that holds one of these could concern a privacy rule.
    pub suspicious: Finder,
    pub all_suspicious: AhoCorasick,
    /// Literals that count only when no letter or digit stands before them.
    pub is_bounded: Vec<bool>,
}

/// Keys of inherited columns, and the column of each.
#[derive(Debug)]
pub struct SharedKeys {
    pub searcher: AhoCorasick,
    pub columns: Vec<usize>,
}

/// Searches bytes for any of several literals; uses vector instructions where the processor has them.
#[derive(Clone)]
pub enum Finder {
    Vectorised(packed::Searcher),
    Plain(AhoCorasick),
}

impl Finder {
    /// # Errors
    /// The literals are too many or too long to search for.
    pub fn new(literals: &[Vec<u8>]) -> Result<Self, aho_corasick::BuildError> {
        match packed::Searcher::new(literals) {
            Some(searcher) => Ok(Self::Vectorised(searcher)),
            None => searcher(literals).map(Self::Plain),
        }
    }

    #[must_use]
    pub fn is_match(&self, bytes: &[u8]) -> bool {
        match self {
            Self::Vectorised(searcher) => searcher.find(bytes).is_some(),
            Self::Plain(searcher) => searcher.is_match(bytes),
        }
    }
}

/// A searcher for all of these literals, overlapping ones too.
///
/// # Errors
/// The literals are too many or too long to search for.
pub fn searcher(literals: &[Vec<u8>]) -> Result<AhoCorasick, aho_corasick::BuildError> {
    AhoCorasick::builder().match_kind(MatchKind::Standard).build(literals)
}

impl Mapping {
    /// Whether bytes hold a text that could concern a privacy rule.
    #[must_use]
    pub fn is_suspicious(&self, bytes: &[u8]) -> bool {
        self.suspicious.is_match(bytes)
            && self.all_suspicious.find_overlapping_iter(bytes).any(|found| {
                let is_bounded = self.is_bounded[found.pattern().as_usize()];
                !(is_bounded && found.start() > 0 && bytes[found.start() - 1].is_ascii_alphanumeric())
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_matches_any_text() {
        assert!(Glob::new("/health").matches(b"/health"));
        assert!(!Glob::new("/health").matches(b"/healthz"));
        assert!(Glob::new("/internal/*").matches(b"/internal/a/b"));
        assert!(Glob::new("*/ping*").matches(b"/a/ping/b"));
        assert!(!Glob::new("*/ping").matches(b"/a/pings"));
        assert!(Glob::new("*").matches(b""));
        assert!(!Glob::new("a*a").matches(b"a"));
    }
}
