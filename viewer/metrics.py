"""Every metric of the page: name with unit, labels from closed sets, a sentence."""

from prometheus_client import Counter, Histogram

requests = Counter("viewer_requests", "Requests to the page, by status", ["status"])
wrong_passwords = Counter("viewer_wrong_passwords", "Requests with a wrong password")
query_seconds = Histogram(
    "viewer_query_seconds",
    "Time of a query of the page, by function of schema analytics",
    ["function"],
    buckets=(0.01, 0.03, 0.1, 0.3, 1, 3, 10),
)
query_failures = Counter("viewer_query_failures", "Queries of the page without an answer", ["reason"])
for reason in ("timeout", "not_migrated", "no_right", "refused", "unreachable"):
    query_failures.labels(reason)
