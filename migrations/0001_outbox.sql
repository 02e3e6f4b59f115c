-- The outbox: what Paddle told us, what has to be done about it, and what has been paid for.
--
-- Names are unqualified: everything lives in the first schema of the search_path. What is due, and when, is by Postgres's own
-- clock, so that no two machines have to agree about it (when something happened is by Paddle's); clock_timestamp() where a
-- transaction may have waited for a lock.
-- Words, ids and addresses are compared byte by byte (collate "C"): the order of the system's language changes with its
-- libraries, and an index that hangs on it is wrong from then on.

-- What Paddle sends may hold any character.
do $$
begin
  if current_setting('server_encoding') not in ('UTF8', 'SQL_ASCII') then
    raise exception 'this database is encoded as %, which has no room for every character: make one with template template0 encoding ''UTF8''',
      current_setting('server_encoding');
  end if;
end $$;

create table outbox (
  -- UUID version 7, of the receiver's clock: sorts by arrival, so new rows go to the end of the index.
  id              uuid        primary key,
  -- Which generation of Paddle sent it.
  source          text collate "C" not null,
  -- Paddle's own number of the alert (Classic alert_id, Billing event_id): what makes a repeat a repeat.
  alert_id        text collate "C" not null,
  alert_name      text        not null,
  -- When it happened, as the alert says; null where it says nothing we can read.
  occurred_at     timestamptz,
  received_at     timestamptz not null default clock_timestamp(),
  -- Lower-cased. A Billing alert names a customer id only: filled in once that is looked up.
  email           text collate "C",
  subscription_id text collate "C",
  status          text collate "C" not null default 'pending',
  -- Set until the alert has been turned into actions (or found to need none).
  to_plan         boolean     not null default true,
  -- Why it is dead, when that is not an action's doing.
  last_error      text,
  finished_at     timestamptz,
  -- The request it came with, as a W3C traceparent: what is done for it belongs to the same trace.
  trace_parent    text,
  -- What was received, byte for byte, and the signature over it: evidence, and the input of a later verification. For people
  -- the view outbox_evidence decodes it: kept decoded as well, it would take as much room again, and longer than all the rest.
  raw_body        bytea       not null,
  raw_signature   text        not null,
  -- What it says, where that cannot be read of it by Postgres: with U+FFFD in place of what no text here can hold.
  mended_payload  jsonb,

  constraint outbox_once unique (source, alert_id),
  constraint outbox_source_known check (source in ('classic', 'billing')),
  constraint outbox_alert_id_sane check (alert_id <> '' and length(alert_id) <= 255),
  constraint outbox_status_known check (status in ('pending', 'done', 'ignored', 'dead')),
  constraint outbox_finished_when_not_pending check ((status = 'pending') = (finished_at is null)),
  constraint outbox_planned_when_not_pending check (not to_plan or status = 'pending'),
  constraint outbox_email_lower_case check (email !~ '[A-Z]'),
  constraint outbox_trace_parent_sane check (length(trace_parent) = 55)
-- Vacuumed when a hundredth is dead, not a fifth: what is dead is in the way of whoever looks for what is due.
) with (fillfactor = 90, autovacuum_vacuum_scale_factor = 0.01, autovacuum_vacuum_threshold = 500, autovacuum_analyze_scale_factor = 0.02,
        toast_tuple_target = 256);

-- What was received is written once and seldom read, while the rest changes with each step of the alert: so it lies apart
-- (in the table's TOAST, from toast_tuple_target on), where a change of the row does not write it again. lz4 is
-- quicker than Postgres's own by far, where the server was built with it.
do $$
begin
  alter table outbox alter raw_body set compression lz4, alter raw_signature set compression lz4, alter mended_payload set compression lz4;
exception when feature_not_supported then null;
end $$;

-- A name or a value of a form, decoded as PHP does: a plus is a space, and a bad escape stays as it is.
create function form_decoded(part text) returns text language sql immutable return
  case when strpos(part, '%') = 0 then replace(part, '+', ' ') else (
    select convert_from(decode(string_agg(
             case when piece[1] like E'\\%__' then substr(piece[1], 2) else encode(convert_to(piece[1], 'UTF8'), 'hex') end,
             '' order by place), 'hex'), 'UTF8')
    from regexp_matches(replace(part, '+', ' '), '%[[:xdigit:]]{2}|[^%]+|%', 'g') with ordinality as found (piece, place)) end;

-- What an alert says: a form as an object of texts without its signature, JSON as it is. As payload_of in
-- crates/outbox/src/received.rs reads it.
create function payload_of(source text, body bytea, mended jsonb) returns jsonb language sql immutable return
  coalesce(mended, case source
    when 'billing' then convert_from(body, 'UTF8')::jsonb
    else (
      select coalesce(jsonb_object_agg(name, value), '{}')
      from unnest(string_to_array(convert_from(body, 'UTF8'), '&')) as pair
      cross join lateral (
        select form_decoded(split_part(pair, '=', 1)) as name,
               form_decoded(case when strpos(pair, '=') > 0 then substr(pair, strpos(pair, '=') + 1) else '' end) as value
        offset 0) as field
      where pair <> '' and name <> 'p_signature')
    end);

-- What was received, for people: look at the payload first.
create view outbox_evidence as
select id as outbox_id, payload_of(source, raw_body, mended_payload) as payload, raw_body as body, raw_signature as signature from outbox;

create index outbox_to_plan on outbox (id) where to_plan;
create index outbox_unsettled on outbox (status, received_at) where status in ('pending', 'dead');
create index outbox_settled on outbox (finished_at) include (status) where status in ('done', 'ignored');

create table outbox_action (
  id          uuid        primary key,
  outbox_id   uuid        not null references outbox (id) on delete cascade,
  kind        text collate "C" not null,
  -- Whom it calls: follows from the kind, so that the two cannot contradict each other.
  destination text collate "C" not null generated always as (
                case kind when 'slack_invite' then 'slack' when 'paddle_customer' then 'paddle' else 'jira' end) stored,
  email       text collate "C",
  -- Billing's customer id, for the look-up of the e-mail address.
  customer_id text collate "C",
  -- Whom it is about, whichever of the two says so.
  subject     text collate "C" not null generated always as (coalesce(email, customer_id)) stored,
  status      text collate "C" not null default 'pending',
  -- Of an alert about a subscription: done only while the customer has one that pays, whenever it is run or replayed.
  while_paid  boolean     not null default false,
  -- What was really done: 'invited', 'already invited', 'granted', 'revoked', 'unchanged', 'covered by <action id>'.
  outcome     text,
  -- Claims so far, without those that a pause or a stop handed back.
  attempts    integer     not null default 0,
  -- Whether it was tried before: first attempts and retries are claimed side by side.
  retry       boolean     not null generated always as (attempts > 0) stored,
  -- When it was meant to happen: a removal waits here, in sight, for the end of a paid period, and what somebody has to act for
  -- first, for when it may be that they have.
  due_at      timestamptz not null default clock_timestamp(),
  -- When it may next be claimed: later than due_at after a failure; while it is running, the end of its lease.
  run_at      timestamptz not null default clock_timestamp(),
  -- Failures of the configuration in a row, which use no attempt: each lets the others go first for longer.
  setbacks    integer     not null default 0,
  last_error  text,
  created_at  timestamptz not null default clock_timestamp(),
  finished_at timestamptz,
  -- The fence: whoever records a result must hold the token of the newest claim.
  claim_token uuid,
  claimed_by  text,
  -- The action whose call does this one's work as well; they share its end.
  leader_id   uuid,

  constraint outbox_action_kind_known check (kind in ('jira_invite', 'jira_access', 'slack_invite', 'paddle_customer')),
  constraint outbox_action_status_known check (status in ('pending', 'running', 'done', 'dead', 'discarded')),
  constraint outbox_action_has_one_subject check ((kind = 'paddle_customer') = (customer_id is not null) and (email is null) = (customer_id is not null)),
  constraint outbox_action_email_lower_case check (email !~ '[A-Z]'),
  constraint outbox_action_claimed_when_running check ((status = 'running') = (claim_token is not null)),
  constraint outbox_action_finished_at_the_end check ((status in ('done', 'dead', 'discarded')) = (finished_at is not null)),
  constraint outbox_action_done_says_what check ((status = 'done') = (outcome is not null)),
  constraint outbox_action_dead_says_why check (status <> 'dead' or last_error is not null),
  constraint outbox_action_attempts_sane check (attempts >= 0 and setbacks >= 0)
) with (fillfactor = 80, autovacuum_vacuum_scale_factor = 0.01, autovacuum_vacuum_threshold = 500, autovacuum_analyze_scale_factor = 0.02);

create index outbox_action_alert on outbox_action (outbox_id);
-- The claim: first attempts and retries apart, so that neither starves the other.
create index outbox_action_due on outbox_action (destination, retry, run_at) where status in ('pending', 'running');
-- Finding what one call can do for a customer; and at most one call at a time for each customer and destination, which is
-- what keeps two evaluations of the same customer's access from overlapping.
-- By the customer first: of all columns it alone always leads to a few rows, whatever plan Postgres keeps.
create index outbox_action_open on outbox_action (subject, kind) where status in ('pending', 'running');
create unique index outbox_action_one_running on outbox_action (subject, destination) where status = 'running';
create index outbox_action_followers on outbox_action (leader_id) where status = 'pending' and leader_id is not null;
create index outbox_action_dead on outbox_action (destination, finished_at) where status = 'dead';
-- Invitations that came due while nothing was paid for: they are made when something is.
create index outbox_action_owed on outbox_action (subject) where while_paid and status = 'done' and outcome = 'unchanged';

create table outbox_attempt (
  id          bigint      generated always as identity primary key,
  action_id   uuid        not null references outbox_action (id) on delete cascade,
  -- The number of the attempt; a number comes again when the attempt before it was not counted. Of one whose worker vanished
  -- it is known only when it was claimed, and for how long.
  attempt     integer     not null,
  started_at  timestamptz not null,
  duration_ms integer     not null,
  -- The answer that decided; null when no answer came.
  http_status integer,
  -- Null when it succeeded.
  error       text
) with (autovacuum_vacuum_scale_factor = 0.01, autovacuum_vacuum_threshold = 500, autovacuum_analyze_scale_factor = 0.02);

create index outbox_attempt_action on outbox_attempt (action_id);

-- The ledger: what we know is paid for, computed from all that was told of a subscription (subscription_alert). So it
-- cannot matter in which order it was told.
create table subscription (
  source          text collate "C" not null,
  subscription_id text collate "C" not null,
  email           text collate "C",
  -- Classic: the address that the alerts name, from which later changes of address lead on.
  told_email      text collate "C",
  -- Billing's customer id: an address that changes there changes here.
  customer_id     text collate "C",
  -- Classic subscription_plan_id; Billing price and product ids.
  plans           text[]      not null default '{}',
  -- 'active', 'trialing', 'past_due', 'paused', or 'cancelled', which Classic calls deleted and Billing canceled.
  status          text collate "C" not null,
  -- Access lasts until then; null is open-ended.
  entitled_until  timestamptz,
  -- Time of the newest alert applied.
  as_of           timestamptz not null,
  primary key (source, subscription_id),
  constraint subscription_source_known check (source in ('classic', 'billing')),
  constraint subscription_status_known check (status in ('active', 'trialing', 'past_due', 'paused', 'cancelled')),
  constraint subscription_email_lower_case check (email !~ '[A-Z]'),
  constraint subscription_end_is_a_time check (isfinite(entitled_until))
);

create index subscription_email on subscription (email);
create index subscription_told_email on subscription (told_email) where told_email is not null;
create index subscription_customer on subscription (customer_id) where customer_id is not null;

-- What each alert said about a subscription. It outlives the alert in the outbox: a late alert is judged by all before it.
create table subscription_alert (
  source          text collate "C" not null,
  subscription_id text collate "C" not null,
  alert_id        text collate "C" not null,
  happened_at     timestamptz not null,
  status          text collate "C" not null,
  -- The status it came from: what orders changes within the same second.
  old_status      text,
  plans           text[]      not null default '{}',
  -- When a cancellation takes effect.
  ends            timestamptz,
  full_refund     boolean     not null default false,
  email           text collate "C",
  customer_id     text collate "C",
  primary key (source, subscription_id, alert_id),
  foreign key (source, subscription_id) references subscription on delete cascade,
  constraint subscription_alert_status_known check (status in ('active', 'trialing', 'past_due', 'paused', 'cancelled'))
);

-- Changes of address in Classic. Kept for the subscriptions that are told of later, under the old address.
create table classic_address_change (
  alert_id    text collate "C" primary key,
  happened_at timestamptz not null,
  old_email   text collate "C" not null,
  new_email   text collate "C" not null
);

create index classic_address_change_old on classic_address_change (old_email);
create index classic_address_change_new on classic_address_change (new_email);

-- Billing's customers: an alert names the id, this table the address.
create table billing_customer (
  customer_id text collate "C" primary key,
  email       text collate "C" not null,
  -- When Paddle last changed the customer, by Paddle's clock, and the alert that told (null for a look-up): which of two
  -- addresses is the newer one.
  as_of       timestamptz not null,
  told_by     text,
  -- When we learnt it, by ours: a look-up that was meant to be made before that has its answer.
  learnt_at   timestamptz not null default clock_timestamp(),
  constraint billing_customer_email_lower_case check (email !~ '[A-Z]')
);

-- A customer as we act for them.
create table customer (
  email           text collate "C" primary key,
  -- The account found or made in Jira (Cloud: accountId, Data Center: user name). Cloud may hide addresses later: keep it.
  jira_account    text,
  -- When Slack Connect last sent them an invitation. While one waits to be accepted Slack takes no other, and does not say whose.
  slack_invited_at timestamptz,
  -- When what is paid for last changed by an alert.
  paid_changed_at timestamptz,
  -- When memberships were last made what is paid for.
  access_made_at  timestamptz,
  constraint customer_email_lower_case check (email !~ '[A-Z]')
);

-- Memberships of customers. What is 'found' is never taken away.
create table membership (
  email    text collate "C" not null references customer (email) on delete cascade,
  -- 'group:<name>' or 'organization:<id>'
  target   text collate "C" not null,
  account  text collate "C" not null,
  -- 'intended' and 'leaving' between the intention and the answer: written before the call, so that a crash in between does
  -- not turn a membership we gave into one we found, nor hide one that is still there. 'found' was there before us and is
  -- not ours to take.
  state    text        not null,
  since    timestamptz not null default clock_timestamp(),
  primary key (email, target),
  constraint membership_target_known check (target ~ '^(group|organization):.'),
  constraint membership_state_known check (state in ('intended', 'given', 'leaving', 'found'))
);

-- One person may have two addresses: who else has this membership by the same account.
create index membership_account on membership (account, target);

-- What a plan gives, as configured: written by the worker at start, for the view below.
create table access_rule (
  plan   text collate "C" not null,
  target text collate "C" not null,
  primary key (plan, target)
);

create table destination (
  name          text collate "C" primary key,
  -- No worker claims anything for it until then. Set it by hand for maintenance; null or the past resumes at once.
  paused_until  timestamptz,
  paused_reason text,
  -- Configuration failures in a row: each pause is longer than the one before.
  failures      integer     not null default 0,
  -- After a configuration failure one action at a time is tried, until one succeeds.
  probing       boolean     not null default false,
  -- Until then a worker is at it.
  probe_until   timestamptz,
  -- All workers together run no more actions than this in any minute; null is as many as they can. Set it by hand as well.
  actions_per_minute integer,
  -- The end of the turns that were taken so far, at an even pace.
  turns_taken_until  timestamptz not null default '-infinity',
  constraint destination_known check (name in ('jira', 'slack', 'paddle')),
  constraint destination_failures_sane check (failures >= 0),
  constraint destination_pace_sane check (actions_per_minute > 0)
);

-- Paddle's API takes 240 calls a minute from one address; an action is one.
insert into destination (name, actions_per_minute) values ('jira', null), ('slack', null), ('paddle', 240);

-- Views for people.

create view dead_letter as
select a.id as action_id, a.outbox_id, o.source, o.alert_id, o.alert_name, a.kind, a.email, a.customer_id, a.destination,
       a.attempts, a.last_error, t.first_try, coalesce(t.last_try, a.finished_at) as last_try, a.finished_at as dead_since
from outbox_action a
join outbox o on o.id = a.outbox_id
left join lateral (
  -- Its own, and those of the call that was made for it as well.
  select min(started_at) as first_try, max(started_at) as last_try from outbox_attempt where action_id in (a.id, a.leader_id)
) t on true
where a.status = 'dead';

create view access as
with entitled as (
  select email, plans from subscription
  where email is not null and (entitled_until is null or entitled_until > now())
), paid as (
  select email, array_agg(distinct plan order by plan) filter (where plan is not null) as plans
  from entitled left join unnest(plans) as plan on true group by email
), wanted as (
  select e.email, array_agg(distinct r.target order by r.target) as targets
  from entitled e join access_rule r on r.plan = '*' or r.plan = any (e.plans) group by e.email
), given as (
  select email, array_agg(target order by target) as targets, max(since) as since
  from membership where state <> 'intended' group by email
), ended as (
  select email, max(entitled_until) as at from subscription where entitled_until <= now() group by email
), everybody as (
  select email from subscription where email is not null union select email from membership
)
select x.email,
       p.email is not null as paid,
       coalesce(p.plans, '{}') as paid_for,
       coalesce(w.targets, '{}') as wanted,
       coalesce(g.targets, '{}') as given,
       c.access_made_at,
       case when w.targets is distinct from g.targets
            -- What was made right did not differ before, whatever the configuration says by now.
            then coalesce(greatest(c.paid_changed_at, ended.at, c.access_made_at), g.since, now()) end as differs_since
from everybody x
left join paid p on p.email = x.email
left join wanted w on w.email = x.email
left join given g on g.email = x.email
left join ended on ended.email = x.email
left join customer c on c.email = x.email;

-- Replay.
--
-- A row that an operator sets from an end state back to pending starts afresh. Everything a replay has to do hangs on that
-- transition, so a plain UPDATE is as good as the functions below. The triggers fire on it alone; the worker's own
-- transitions only pay for the comparison.

-- What an alert comes to is decided by looking at all of its actions, also at those that others have ended a moment ago.
create function outbox_sees_others() returns void language plpgsql as $$
begin
  if current_setting('transaction_isolation') <> 'read committed' then
    raise exception 'this transaction does not see what others have done since it began' using
      errcode = 'object_not_in_prerequisite_state', hint = 'Begin it with: begin isolation level read committed.';
  end if;
end $$;

create function outbox_action_revive() returns trigger language plpgsql as $$
begin
  new.attempts := 0;
  -- A removal that was ended before its time still has its time; an invitation is due now, whomever it waited for.
  new.due_at := greatest(case when old.kind = 'jira_access' then old.due_at end, clock_timestamp());
  new.run_at := new.due_at;
  new.finished_at := null;
  new.outcome := null;
  new.claim_token := null;
  new.claimed_by := null;
  new.leader_id := null;
  new.setbacks := 0;
  return new;
end $$;

create trigger outbox_action_revive before update of status on outbox_action for each row
  when (new.status = 'pending' and old.status in ('dead', 'done', 'discarded'))
  execute function outbox_action_revive();

create function outbox_action_revived() returns trigger language plpgsql as $$
begin
  perform outbox_sees_others();
  -- Under lock, so that of two replays at once the second sees what the first has done.
  perform from outbox where id = new.outbox_id for update;
  update outbox set status = 'pending', finished_at = null, last_error = null
  where id = new.outbox_id and status <> 'pending'
    -- By the alert: while statistics know of few dead ones, Postgres would read all of these for each.
    and not exists (select from outbox_action where outbox_id = new.outbox_id and status || '' = 'dead');
  perform pg_notify('oarlock', new.destination);
  return null;
end $$;

create trigger outbox_action_revived after update of status on outbox_action for each row
  when (new.status = 'pending' and old.status in ('dead', 'done', 'discarded'))
  execute function outbox_action_revived();

-- An alert set back to pending runs its dead actions again, or else the done ones; one that has neither is planned again.
create function outbox_revive() returns trigger language plpgsql as $$
begin
  new.finished_at := null;
  new.last_error := null;
  new.to_plan := not exists (
    select from outbox_action
    where outbox_id = new.id and status <> 'discarded' and not (kind = 'paddle_customer' and status = 'done'));
  return new;
end $$;

create trigger outbox_revive before update of status on outbox for each row
  when (new.status = 'pending' and old.status <> 'pending' and pg_trigger_depth() = 0)
  execute function outbox_revive();

create function outbox_revived() returns trigger language plpgsql as $$
begin
  if exists (select from outbox_action where outbox_id = new.id and status || '' = 'dead') then
    update outbox_action set status = 'pending' where outbox_id = new.id and status || '' = 'dead';
  else
    -- A look-up has brought the address, which is kept up to date since: what the alert is for is done again.
    update outbox_action set status = 'pending' where outbox_id = new.id and status = 'done' and kind <> 'paddle_customer';
  end if;
  perform pg_notify('oarlock', 'outbox');
  return null;
end $$;

create trigger outbox_revived after update of status on outbox for each row
  when (new.status = 'pending' and old.status <> 'pending' and pg_trigger_depth() = 0)
  execute function outbox_revived();

-- Brings an alert's status in line with its actions: dead as soon as one is dead, so that it is seen, even while others are
-- at work. Call it with the alert's row locked. (In plpgsql since that keeps the plan.)
create function outbox_settle(alerts uuid[]) returns void language plpgsql as $$
begin
  perform outbox_sees_others();
  with s as materialized (
    select a.outbox_id,
           case when bool_or(a.status = 'dead') then 'dead'
                when bool_or(a.status in ('pending', 'running')) then 'pending'
                else 'done' end as status
    from outbox_action a
    where a.outbox_id = any (alerts)
    group by a.outbox_id
  )
  update outbox o
  set status = s.status,
      finished_at = case s.status when 'pending' then null else clock_timestamp() end
  from s
  -- An array of one, here and in outbox_record: as BY_INDEX in crates/outbox/src/lib.rs says.
  where o.id = any (array[s.outbox_id]) and o.status <> s.status and not o.to_plan
    -- What ended by itself, before any action could end it, is not the actions' to say.
    and o.status <> 'ignored' and not (o.status = 'dead' and o.last_error is not null);
end $$;

-- The address that these alerts waited for is known: they are planned, unless a look-up was replayed of one that was, which is left
-- to be settled.
create function outbox_plan_again(alerts uuid[]) returns void language plpgsql as $$
begin
  perform from outbox o where o.id = any (alerts) order by o.id for update;
  update outbox o set status = 'pending', finished_at = null, last_error = null, to_plan = true
  where o.id = any (alerts) and o.status in ('pending', 'dead')
    and not exists (
      select from outbox_action a
      where a.outbox_id = o.id and a.status <> 'discarded' and not (a.kind = 'paddle_customer' and a.status = 'done'));
  if found then
    perform pg_notify('oarlock', 'outbox');
  end if;
end $$;

-- Invitations that were not made go to whom their subscription belongs now: those that wait, and those that found nothing paid for.
-- Call it with the rows of the former owners in customer locked; locks those of the owners of now, and returns who they are.
create function invitations_follow(former_owners text[]) returns text[] language plpgsql as $$
declare
  owners text[];
begin
  with followed as (
    update outbox_action a set email = s.email, leader_id = null
    from outbox o join subscription s on s.source = o.source and s.subscription_id = o.subscription_id
    where a.id in (
      -- Apart, since each has an index of its own.
      select w.id from outbox_action w where w.subject = any (former_owners) and w.while_paid and w.status in ('pending', 'running')
      union all
      select d.id from outbox_action d where d.subject = any (former_owners) and d.while_paid and d.status = 'done' and d.outcome = 'unchanged')
      and (a.status = 'pending' or a.status = 'done' and a.outcome = 'unchanged')
      and o.id = a.outbox_id and s.email <> a.email
    returning a.email
  )
  select coalesce(array_agg(email), '{}') into owners from followed;
  perform from customer where email = any (owners) order by email for share;
  return owners;
end $$;

-- Makes the invitations that found nothing paid for, as if by a replay, of those of these customers who pay now. Call it with their
-- rows in customer locked: whoever writes that payment has come back locks them too, and so one of the two sees the other.
create function invite_the_owed(customers text[]) returns void language plpgsql as $$
begin
  update outbox_action a set status = 'pending'
  where a.subject = any (customers) and a.while_paid and a.status = 'done' and a.outcome = 'unchanged'
    and exists (select from subscription s where s.email = a.email and (s.entitled_until is null or s.entitled_until > clock_timestamp()));
end $$;

-- The addresses of these customers of Billing are known now: their look-ups that wait, or that failed, need no call any more,
-- and the alerts that waited for them can be planned. A look-up that is under way is touched, so that its end cannot be recorded
-- without seeing what this transaction writes.
create function answer_look_ups(customers text[]) returns void language plpgsql as $$
declare
  alerts uuid[];
begin
  with answered as (
    update outbox_action a
    set status = case a.status when 'running' then a.status else 'done' end,
        outcome = case a.status when 'running' then a.outcome else 'unchanged' end,
        last_error = case a.status when 'running' then a.last_error end,
        finished_at = case a.status when 'running' then a.finished_at else clock_timestamp() end
    where a.id in (
      -- Apart, since each has an index of its own.
      select l.id from outbox_action l where l.subject = any (customers) and l.kind = 'paddle_customer' and l.status in ('pending', 'running')
      union all
      select l.id from outbox_action l where l.destination = 'paddle' and l.subject = any (customers) and l.kind = 'paddle_customer' and l.status = 'dead')
      and a.status in ('pending', 'running', 'dead')
    returning a.outbox_id, a.status
  )
  select array_agg(outbox_id) into alerts from answered where status = 'done';
  perform outbox_plan_again(alerts);
  perform outbox_settle(alerts);
end $$;

-- Writes the results of claims, each guarded by its token; returns the actions it was written for, which are not those whose
-- claim was lost. The arrays belong together: one element of each is a result (Finished in crates/outbox/src/record.rs).
--
-- What was tied to an action at its claim shares its end. A function, since what waits for Postgres between two statements of
-- a transaction waits for longer than the statements take; each statement in it sees what was committed before it began.
--
-- Whoever replays by SQL locks in an order of their own. If the two wait for each other it is we who give way, here as in the
-- planner's transaction, and long before Postgres looks for deadlocks and lets the operator's statement fail.
create function outbox_record(
  ids uuid[], tokens uuid[], statuses text[], outcomes text[], errors text[], delays_ms bigint[], are_counted bool[],
  starts_ms_ago bigint[], durations_ms bigint[], http_statuses integer[], attempt_errors text[], stand_back bool[], are_postponed bool[],
  are_used_up bool[], look_ups_in_vain uuid[])
returns uuid[] language plpgsql set lock_timeout = '300ms' as $$
declare
  answered uuid[] := '{}';
  recorded uuid[];
  alerts   uuid[];
  told     uuid[];
  owed     text[];
begin
  -- The alerts first and in order, so that two workers that finish an alert's last two actions at once do not each leave the
  -- alert to the other.
  perform o.id from outbox o
  where o.id in (
    select a.outbox_id from outbox_action a where a.id = any (ids)
    union
    select f.outbox_id from outbox_action l cross join lateral (
      select f.outbox_id from outbox_action f
      where f.leader_id = l.id and f.status = 'pending'
      offset 0) f
    where l.id = any (ids))
  order by o.id for update;
  -- A pause that somebody ends in this moment is over for what is written here as well.
  if true = any (stand_back) then
    perform from destination order by name for share;
  end if;
  -- Look-ups whose address an alert has told meanwhile: the first alerts of a new customer come in any order, and may be quicker
  -- than Paddle's API. Under lock first, and then with a fresh look: the planner touches the row of whom it learns an address for.
  if look_ups_in_vain <> '{}' then
    perform from outbox_action a where a.id = any (look_ups_in_vain) order by a.id for update;
    answered := array(
      select a.id from outbox_action a join billing_customer c on c.customer_id = a.customer_id
      where a.id = any (look_ups_in_vain) and c.learnt_at >= a.due_at);
  end if;

  with said as (
    select * from unnest(ids, tokens, statuses, outcomes, errors, delays_ms, are_counted, starts_ms_ago, durations_ms,
                         http_statuses, attempt_errors, stand_back, are_postponed, are_used_up)
      as r (id, token, status, outcome, error, delay_ms, counted, started_ms_ago, duration_ms, http_status, attempt_error, stood_back,
            postponed, used_up)
  ), result as materialized (
    select * from said where id <> all (answered)
    union all
    select id, token, 'done', 'unchanged', null, 0, true, started_ms_ago, duration_ms, http_status, attempt_error, false, false, false
    from said where id = any (answered)
  ), leader as (
    update outbox_action a
    set status = r.status, outcome = r.outcome,
        last_error = case when r.status = 'done' then null else coalesce(r.error, a.last_error) end,
        attempts = greatest(a.attempts - case when r.counted then 0 else 1 end, 0),
        setbacks = case when r.stood_back then a.setbacks + 1 when r.counted then 0 else a.setbacks end,
        run_at = case when r.stood_back
                      then greatest(clock_timestamp(), case when isfinite(d.paused_until) then d.paused_until end)
                           + least(interval '5 min' * (power(2, least(a.setbacks, 10)) - 1), interval '1 hour')
                      when r.status = 'pending' then clock_timestamp() + r.delay_ms * interval '1 ms'
                      else a.run_at end,
        due_at = case when r.postponed then clock_timestamp() + r.delay_ms * interval '1 ms' else a.due_at end,
        finished_at = case when r.status <> 'pending' then clock_timestamp() end,
        claim_token = null, claimed_by = null
    from result r, destination d
    where a.id = any (array[r.id]) and a.claim_token = r.token and d.name = a.destination
    returning a.id, a.outbox_id, a.kind, a.status, a.last_error, a.due_at, a.run_at, a.attempts,
              r.counted, r.postponed, r.used_up, r.started_ms_ago, r.duration_ms, r.http_status, r.attempt_error
  ), follower as (
    -- Row by row, whatever the planner believes of a table that has just filled up. Who came late to a series of attempts
    -- does not die with its last one.
    select f.id, l.id as leader_id, case when l.used_up and f.attempts + 1 < l.attempts then 'pending' else l.status end as status
    from leader l cross join lateral (
      select f.id, f.attempts from outbox_action f
      where f.leader_id = l.id and f.status = 'pending'
      offset 0) f
  ), followed as (
    update outbox_action f
    set status = w.status,
        -- The call was made for it as well. (But a new alert's first attempts do not use up those of an old one.)
        attempts = f.attempts + case when l.counted and l.status <> 'done' and l.attempts > f.attempts then 1 else 0 end,
        outcome = case when l.status = 'done' then 'covered by ' || l.id end,
        last_error = case when l.status = 'done' then null else coalesce(l.last_error, f.last_error) end,
        run_at = case when l.status = 'pending' then greatest(l.run_at, f.run_at) when w.status = 'pending' then clock_timestamp() else f.run_at end,
        due_at = case when l.postponed then greatest(l.due_at, f.due_at) else f.due_at end,
        finished_at = case when w.status <> 'pending' then clock_timestamp() end,
        leader_id = case when w.status <> 'pending' then f.leader_id end
    from follower w join leader l on l.id = w.leader_id
    where f.id = any (array[w.id]) and f.leader_id = l.id and f.status = 'pending'
    returning f.outbox_id, f.kind, f.status
  ), history as (
    insert into outbox_attempt (action_id, attempt, started_at, duration_ms, http_status, error)
    select l.id, l.attempts + case when l.counted then 0 else 1 end, clock_timestamp() - l.started_ms_ago * interval '1 ms',
           least(l.duration_ms, 2147483647)::int, l.http_status, l.attempt_error
    from leader l where l.started_ms_ago is not null
  ), ended as (
    select id, outbox_id, kind, status from leader
    union all
    select null, outbox_id, kind, status from followed
  )
  select array_agg(e.id) filter (where e.id is not null), array_agg(e.outbox_id),
         array_agg(e.outbox_id) filter (where e.kind = 'paddle_customer' and e.status = 'done')
  into recorded, alerts, told
  from ended e;

  -- While it was found that there is no payment it may have come back, or the subscription may have gone to another address.
  if 'unchanged' = any (outcomes) then
    owed := array(
      select c.email from outbox_action a join customer c on c.email = a.email
      where a.id = any (recorded) and a.while_paid and a.status = 'done' and a.outcome = 'unchanged' for share of c);
    if owed <> '{}' then
      perform invite_the_owed(owed || invitations_follow(owed));
    end if;
  end if;
  -- The address is known now: the alerts that waited for it can be planned, also those whose own look-up failed.
  if told is not null then
    perform outbox_plan_again(told);
    perform answer_look_ups(array(
      select a.subject from outbox_action a where a.id = any (recorded) and a.kind = 'paddle_customer' and a.status = 'done'));
  end if;
  -- Of what was written alone: a worker that lost its claim has nothing to say about an alert either.
  perform outbox_settle(alerts);
  return coalesce(recorded, '{}');
end $$;

-- An action that ends without a result (buried at claim time, discarded by hand) settles its alert whoever ended it. One that
-- is recorded as dead does so too, a moment before outbox_record settles the alerts of all it has written.
create function outbox_action_ended() returns trigger language plpgsql as $$
begin
  perform from outbox where id = new.outbox_id for update;
  perform outbox_settle(array[new.outbox_id]);
  return null;
end $$;

create trigger outbox_action_ended after update of status on outbox_action for each row
  when (new.status in ('dead', 'discarded') and new.status <> old.status)
  execute function outbox_action_ended();

-- Runs an action or an alert again, whatever end it came to: of an alert the dead actions, or all of them but the look-up of
-- its address if none is dead; an alert that was ignored or could not be planned is planned again. Returns how many actions or alerts were put back.
create function replay(id uuid) returns integer language plpgsql as $$
declare
  put_back integer;
begin
  update outbox_action a set status = 'pending' where a.id = replay.id and a.status in ('dead', 'done', 'discarded');
  get diagnostics put_back = row_count;
  if put_back = 0 then
    update outbox o set status = 'pending' where o.id = replay.id and o.status <> 'pending';
    get diagnostics put_back = row_count;
  end if;
  return put_back;
end $$;

-- Runs dead letters again, the oldest first: those that died since then, of one destination or (null) of all.
create function replay_dead_letters(destination text default null, since timestamptz default '-infinity', max_rows integer default 1000)
returns integer language plpgsql as $$
declare
  put_back integer;
begin
  if replay_dead_letters.destination is not null and not exists (select from destination d where d.name = replay_dead_letters.destination) then
    raise exception 'there is no destination of this name: jira, slack, paddle, or null for all' using errcode = 'invalid_parameter_value';
  end if;
  update outbox_action a set status = 'pending'
  where a.id in (
    select d.id from outbox_action d
    where d.status = 'dead'
      and (replay_dead_letters.destination is null or d.destination = replay_dead_letters.destination)
      and d.finished_at >= coalesce(since, '-infinity')
    order by d.finished_at limit max_rows
    for update skip locked);
  get diagnostics put_back = row_count;
  return put_back;
end $$;

-- Ends a dead letter (an action, or an alert with all its dead actions) without running it. Returns how many were ended.
create function discard(id uuid, reason text) returns integer language plpgsql as $$
declare
  ended integer;
begin
  if coalesce(trim(reason), '') = '' then
    raise exception 'give a reason: it is kept with the row' using errcode = 'invalid_parameter_value';
  end if;
  update outbox_action a
  set status = 'discarded', finished_at = clock_timestamp(),
      last_error = 'discarded: ' || reason || coalesce(' (was: ' || a.last_error || ')', '')
  where (a.id = discard.id or a.outbox_id = discard.id) and a.status || '' = 'dead';
  get diagnostics ended = row_count;
  if ended = 0 then
    update outbox o
    set status = 'ignored', finished_at = clock_timestamp(),
        last_error = 'discarded: ' || reason || coalesce(' (was: ' || o.last_error || ')', '')
    where o.id = discard.id and o.status = 'dead'
      and not exists (select from outbox_action a where a.outbox_id = o.id and a.status || '' = 'dead');
    get diagnostics ended = row_count;
  end if;
  return ended;
end $$;

-- Whoever may write nothing of an alert but its status may replay it: what it comes to is for its actions to say. (An end that was
-- written by hand would hide what is dead, and after a while it would be deleted with it.)
create function outbox_keep_end() returns trigger language plpgsql as $$
begin
  if not has_column_privilege('outbox', 'last_error', 'update') then
    raise exception 'an alert can be set to pending alone' using
      errcode = 'insufficient_privilege', hint = 'To end it without running it: select discard(id, reason).';
  end if;
  return new;
end $$;

create trigger outbox_keep_end before update of status on outbox for each row
  when (old.status <> 'pending' and new.status <> 'pending' and new.status <> old.status)
  execute function outbox_keep_end();

-- Pauses.

create function destination_resume() returns trigger language plpgsql as $$
begin
  new.paused_reason := null;
  new.failures := 0;
  new.probe_until := null;
  return new;
end $$;

create trigger destination_resume before update of paused_until on destination for each row
  when (new.paused_until is null and old.paused_until is not null)
  execute function destination_resume();

create function destination_resumed() returns trigger language plpgsql as $$
begin
  -- Somebody says it is mended: what had to stand back is due now, what failed least often first. (A worker whose probe
  -- went through, which ends the probing, can only tell for that one action.)
  if new.probing = old.probing then
    update outbox_action set run_at = clock_timestamp() - interval '1 s' + least(setbacks, 999) * interval '1 ms'
    where destination = new.name and status = 'pending' and setbacks > 0 and run_at > clock_timestamp();
  end if;
  perform pg_notify('oarlock', new.name);
  return null;
end $$;

create trigger destination_resumed after update of paused_until on destination for each row
  when (old.paused_until is not null and (new.paused_until is null or new.paused_until < old.paused_until))
  execute function destination_resumed();
