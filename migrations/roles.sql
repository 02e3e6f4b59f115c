-- The four roles, for deployments that do not want one role to own everything. Once for each cluster, by whoever may create
-- roles there (on a managed service: its administrator); again is harmless.
--
--   psql "$ADMIN_URL" -f migrations/roles.sql
--   grant oarlock_owner to current_user;             -- unless you are a superuser
--   create database oarlock owner oarlock_owner template template0 encoding 'UTF8';
--   \password oarlock_receiver                       -- and the others: without one nobody logs in by password
--
-- This is no migration: roles belong to the cluster and not to a database, and who migrates seldom may create any. What each
-- may do in a database is granted by its owner, in the migrations: see grant_to_roles() in 0002_roles.sql.

do $$
declare
  name text;
begin
  foreach name in array array['oarlock_owner', 'oarlock_receiver', 'oarlock_worker', 'oarlock_operator'] loop
    if to_regrole(name) is null then
      execute format('create role %I login', name);
    end if;
  end loop;
end $$;
