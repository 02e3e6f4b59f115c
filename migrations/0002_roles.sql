-- Who may do what, and what else operators need.
--
-- With one role that owns everything all of this is as if it were not there. With the four of roles.sql:
--
--   oarlock_owner     owns the tables and migrates
--   oarlock_receiver  stores alerts, and can read none
--   oarlock_worker    plans and acts; reads what alerts say, and stores none
--   oarlock_operator  reads all but what was received; replays, pauses, discards, reconciles, forgets

-- Of the receiver.

-- Alerts whose number is taken by one that says something else; those of forgotten customers say nothing any more.
--
-- A repeat may differ where Paddle makes it differ: Billing gives each delivery to each destination its own
-- `notification_id`; Classic puts the customer's private links into the alerts of the primary endpoint only.
--
-- A function, so that who faces the internet can compare a payload without being able to read any.
create function alerts_with_other_content(ids uuid[], sources text[], alert_ids text[], bodies bytea[], mended text[])
returns setof uuid language sql stable as $$
  select new.id
  from unnest(ids, sources, alert_ids, bodies, mended) as new (id, source, alert_id, body, mended)
  join outbox held using (source, alert_id)
  cross join lateral (
    select payload_of(held.source, held.raw_body, held.mended_payload) as held_payload,
           payload_of(new.source, new.body, new.mended::jsonb) as new_payload) said
  where held_payload <> '{}'
    and held_payload - '{notification_id,cancel_url,update_url}'::text[]
     <> new_payload - '{notification_id,cancel_url,update_url}'::text[]
$$;

-- Of the operators.

-- Makes a customer's access what they pay for, now: for when no alert is left to replay, or somebody changed a group by hand.
-- Returns the action that will do it.
create function reconcile(email text) returns uuid language plpgsql as $$
declare
  address text := lower(trim(reconcile.email));
  alert   uuid;
  action  uuid;
begin
  if not exists (select from access a where a.email = address) then
    raise exception 'no subscription and no membership of this address is known' using errcode = 'no_data_found';
  end if;
  -- One that waits for its next try does as well. One that is running may have looked already, also for one that waits.
  update outbox_action a set run_at = clock_timestamp()
  where a.id = (
    select w.id from outbox_action w
    where w.destination = 'jira' and w.subject = address and w.kind = 'jira_access' and w.status = 'pending' and w.due_at <= clock_timestamp()
      and not exists (
        select from outbox_action r
        where r.destination = 'jira' and r.subject = address and r.kind = 'jira_access' and r.status = 'running')
    limit 1)
    -- Not what a worker has claimed meanwhile, whose lease this would be.
    and a.status = 'pending'
  returning a.id into action;
  if action is null then
    -- Every action belongs to an alert: here to one of our own, which says nothing. Its id is of version 7 as well.
    alert := encode(set_bit(set_bit(overlay(uuid_send(gen_random_uuid())
               placing substring(int8send((extract(epoch from clock_timestamp()) * 1000)::bigint) from 3) from 1 for 6), 52, 1), 53, 1), 'hex')::uuid;
    insert into outbox (id, source, alert_id, alert_name, email, to_plan, raw_body, raw_signature, mended_payload)
    values (alert, coalesce((select s.source from subscription s where s.email = address order by s.as_of desc limit 1), 'classic'),
            'reconcile-' || alert, 'reconcile', address, false, '', '', '{}');
    insert into outbox_action (id, outbox_id, kind, email) values (gen_random_uuid(), alert, 'jira_access', address) returning id into action;
  end if;
  perform pg_notify('oarlock', 'jira');
  return action;
end $$;

-- The alerts received since then that name this address, or one of these customers of Billing, wherever that is.
create function alerts_naming(address text, customers text[], since timestamptz) returns uuid[] language plpgsql as $$
declare
  -- Decoding them all takes a second for a thousand. Letters and digits are received as they are, or else as an escape: so
  -- those without the longest run of them in the address, or in the id, are passed over.
  runs text[] := array(
    select '%' || lower(run) || '%'
    from unnest(customers || (select word from regexp_split_to_table(address, '[^a-z0-9]+') word order by length(word) desc limit 1)) run);
  escaped text := E'\\\\u|%(3[0-9]|[46][1-9a-f]|[57][0-9a])';
begin
  return array(
    select o.id
    from outbox o cross join lateral (select lower(convert_from(o.raw_body, 'LATIN1')) as text offset 0) raw
    where o.received_at >= since
      and (o.email = address
           or (raw.text like any (runs) or raw.text ~ escaped or o.mended_payload is not null)
              and exists (
                select from jsonb_path_query(payload_of(o.source, o.raw_body, o.mended_payload), 'strict $.** ? (@.type() == "string")') as said
                where lower(trim(said #>> '{}')) = address or said #>> '{}' = any (customers))));
end $$;

-- Forgets a customer: takes away what access is left, and, run again when that is done, puts a name that nobody has in place of
-- the address and deletes what was received.
--
-- What stays is what tells nobody who it was: that there was an alert (so a repeat is still a repeat), what was done and when,
-- what was paid for. Paddle's ids of alerts and subscriptions stay too; only Paddle knows whose they are. Returns what was done.
create function forget(email text) returns text language plpgsql as $$
declare
  address   text := lower(trim(forget.email));
  -- Random, since a hash of an address can be guessed.
  pseudonym text := 'forgotten-' || gen_random_uuid();
  customers text[] := array(select c.customer_id from billing_customer c where c.email = address order by 1);
  -- Every payload is looked into, which takes its time: so all but the newest are before the lock. What is stored has its time
  -- somewhat before it is committed.
  since     timestamptz := clock_timestamp() - interval '1 hour';
  alerts    uuid[];
  actions   uuid[];
begin
  if address is null or address !~ '^[^[:space:]]+@[^[:space:]]+$' then
    raise exception 'give the e-mail address of a customer' using errcode = 'invalid_parameter_value';
  end if;
  alerts := alerts_naming(address, customers, '-infinity');
  -- The planner's lock: what it has just read about them would be written back. Whoever forgets to commit does not keep it.
  perform set_config('idle_in_transaction_session_timeout', '30s', true);
  perform pg_advisory_xact_lock(x'6f61726c6f636b01'::bigint);
  if customers <> array(select c.customer_id from billing_customer c where c.email = address order by 1) then
    raise exception 'something of theirs is under way' using
      errcode = 'object_not_in_prerequisite_state', hint = 'Try again in a moment.';
  end if;
  -- Under lock, so that no worker claims one from here on.
  actions := array(select a.id from outbox_action a where a.subject = address or a.subject = any (customers) for update);
  alerts := array(
    select unnest(alerts)
    union select unnest(alerts_naming(address, customers, since)));
  if alerts = '{}' and actions = '{}' and customers = '{}'
     and not exists (select from subscription s where address in (s.email, s.told_email))
     and not exists (select from subscription_alert s where s.email = address)
     and not exists (select from classic_address_change c where address in (c.old_email, c.new_email))
     and not exists (select from customer c where c.email = address) then
    raise exception 'nobody of this address is known' using errcode = 'no_data_found';
  end if;
  if exists (select from subscription s where s.email = address and s.status <> 'cancelled') then
    raise exception 'a subscription of theirs is not cancelled' using
      errcode = 'object_not_in_prerequisite_state', hint = 'Cancel it at Paddle first: else its next alert brings them back.';
  end if;
  if exists (select from outbox o where o.id = any (alerts) and o.to_plan)
     or exists (select from outbox_action a where a.id = any (actions) and a.status = 'running') then
    raise exception 'something of theirs is under way' using
      errcode = 'object_not_in_prerequisite_state', hint = 'Try again in a moment.';
  end if;

  if exists (select from membership m where m.email = address and m.state <> 'found') then
    -- Only a worker can take it away.
    update subscription s set entitled_until = now() where s.email = address and s.entitled_until > now();
    perform reconcile(address);
    return 'access is being taken away; run this again when it is';
  end if;

  update outbox_action a set status = 'discarded', finished_at = clock_timestamp()
  where a.id = any (actions) and a.status in ('pending', 'dead');
  update outbox_action a
  set email = case when a.email is not null then pseudonym end, customer_id = case when a.customer_id is not null then pseudonym end
  where a.id = any (actions);
  -- What could not be planned never will be.
  update outbox o set status = 'ignored', last_error = 'discarded: the customer is forgotten'
  where o.id = any (alerts) and o.status = 'dead' and not exists (select from outbox_action a where a.outbox_id = o.id and a.status = 'dead');
  -- An alert of somebody else that names this address (theirs was it before) is still somebody else's.
  update outbox o set email = coalesce(nullif(o.email, address), pseudonym), raw_body = '', raw_signature = '', mended_payload = '{}'
  where o.id = any (alerts);
  update subscription s
  set email = case s.email when address then pseudonym else s.email end,
      told_email = case s.told_email when address then pseudonym else s.told_email end,
      customer_id = case when s.customer_id = any (customers) then pseudonym else s.customer_id end,
      entitled_until = case s.email when address then least(s.entitled_until, now()) else s.entitled_until end
  where address in (s.email, s.told_email) or s.customer_id = any (customers);
  update subscription_alert s
  set email = case s.email when address then pseudonym else s.email end,
      customer_id = case when s.customer_id = any (customers) then pseudonym else s.customer_id end
  where s.email = address or s.customer_id = any (customers);
  update classic_address_change c
  set old_email = case c.old_email when address then pseudonym else c.old_email end,
      new_email = case c.new_email when address then pseudonym else c.new_email end
  where address in (c.old_email, c.new_email);
  delete from billing_customer c where c.email = address;
  delete from customer c where c.email = address;
  return format('forgotten: %s alerts, %s actions', cardinality(alerts), cardinality(actions));
end $$;

-- Nobody can be called for who is forgotten: a replay passes over them.
create function stay_forgotten() returns trigger language plpgsql as $$
begin
  return null;
end $$;

create trigger outbox_action_forgotten before update of status on outbox_action for each row
  when (new.status = 'pending' and old.status in ('dead', 'done', 'discarded') and old.subject like 'forgotten-%')
  execute function stay_forgotten();

create trigger outbox_forgotten before update of status on outbox for each row
  when (new.status = 'pending' and old.status <> 'pending' and old.email like 'forgotten-%' and pg_trigger_depth() = 0)
  execute function stay_forgotten();

-- What these write is more than whoever calls or triggers them may write by themselves. So they run as their owner, and for
-- that with a search_path that nobody else has a say in: this schema, and temporary tables last.
do $$
declare
  function text;
begin
  foreach function in array array[
    'alerts_with_other_content(uuid[], text[], text[], bytea[], text[])', 'reconcile(text)', 'forget(text)', 'discard(uuid, text)',
    'outbox_action_revived()', 'outbox_action_ended()'] loop
    execute format('alter function %s security definer set search_path to %I, pg_temp', function, current_schema());
    execute format('revoke execute on function %s from public', function);
  end loop;
  -- These do as whoever calls them may, and find the tables also for who names them with their schema.
  foreach function in array array[
    'replay(uuid)', 'replay_dead_letters(text, timestamptz, integer)', 'outbox_revive()', 'outbox_revived()', 'outbox_keep_end()',
    'destination_resumed()'] loop
    execute format('alter function %s set search_path to %I, pg_temp', function, current_schema());
  end loop;
end $$;

-- Grants to each of the roles, if it exists, what it needs and nothing more. Every migration that adds something ends with a
-- call of this; the owner calls it when the roles come later than the tables.
create function grant_to_roles() returns void language plpgsql as $$
declare
  name text;
begin
  for name in select rolname from pg_roles where rolname in ('oarlock_receiver', 'oarlock_worker', 'oarlock_operator') loop
    execute format('grant usage on schema %I to %I', current_schema(), name);
    -- Whether the schema is as a program needs it.
    execute format('grant select on _sqlx_migrations to %I', name);
  end loop;

  if to_regrole('oarlock_receiver') is not null then
    grant insert (id, source, alert_id, alert_name, occurred_at, email, subscription_id, raw_body, raw_signature, mended_payload, trace_parent),
          select (id, source, alert_id) on outbox to oarlock_receiver;
    grant execute on function alerts_with_other_content to oarlock_receiver;
  end if;

  if to_regrole('oarlock_worker') is not null then
    grant select (id, source, alert_id, alert_name, occurred_at, received_at, email, subscription_id, status, to_plan, last_error, finished_at, trace_parent, raw_body, mended_payload),
          update (email, status, to_plan, last_error, finished_at), delete on outbox to oarlock_worker;
    grant select, insert, update on outbox_action, subscription, billing_customer, customer to oarlock_worker;
    grant select, insert on outbox_attempt, subscription_alert, classic_address_change to oarlock_worker;
    grant select, insert, update, delete on membership to oarlock_worker;
    grant select, insert, delete on access_rule to oarlock_worker;
    grant select, update on destination to oarlock_worker;
    grant select on access to oarlock_worker;
  end if;

  if to_regrole('oarlock_operator') is not null then
    grant select (id, source, alert_id, alert_name, occurred_at, received_at, email, subscription_id, status, to_plan, last_error, finished_at, trace_parent),
          update (status) on outbox to oarlock_operator;
    grant select, update (status, run_at) on outbox_action to oarlock_operator;
    grant select, update (paused_until, paused_reason, actions_per_minute) on destination to oarlock_operator;
    grant select on outbox_attempt, subscription, subscription_alert, classic_address_change, billing_customer, customer, membership,
                    access_rule, dead_letter, access to oarlock_operator;
    grant execute on function reconcile, forget, discard to oarlock_operator;
  end if;
end $$;

select grant_to_roles();
