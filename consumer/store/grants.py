"""a new analytics table -> the statement that lets the same roles use it as user_activity. Pure.

Roles are the deployment's own (deploy/postgres); a migration that names none of them works everywhere.
"""

MODEL = "user_activity"


def same_grants(table: str) -> str:
    """Grants on public.`table` to everybody who has them on public.user_activity; harmless to repeat."""
    return f"""
DO $$
DECLARE granted record;
BEGIN
    FOR granted IN
        SELECT acl.privilege_type, acl.grantee
        FROM pg_class AS class, aclexplode(class.relacl) AS acl
        WHERE class.oid = 'public.{MODEL}'::regclass AND acl.grantee <> class.relowner
    LOOP
        EXECUTE format(
            'GRANT %s ON public.{table} TO %s',
            granted.privilege_type,
            CASE granted.grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(granted.grantee)) END
        );
    END LOOP;
END $$"""  # noqa: S608  our own table names
