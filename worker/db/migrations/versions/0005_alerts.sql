-- What people are told: the outbox of alerts, with their routes and steps. Only adds: the previous release keeps working on this schema.

alter table alerts
    add column raising       integer not null default 1,           -- counts how often the cause appeared, or became less severe
    add column flaps         integer not null default 0,           -- of these, how often within minutes of having been over
    add column changed_at    timestamptz not null default now(),   -- when it was last raised, resolved, or of another severity
    add column look_at       timestamptz,                          -- when it is to be looked at for what people should hear
    add column told_at       timestamptz,                          -- since when people believe that it is open
    add column told_severity text,
    add column told_step     smallint not null default 0,          -- reminders sent because nobody acknowledged it
    add column steps_from    timestamptz,
    add column acked_by      text,
    add column acked_at      timestamptz,
    add column ack_note      text;
comment on column alerts.look_at is 'The queue of what people are told: set by trigger with every transition, whoever writes it, and by reminders.';
update alerts set look_at = now() where resolved_at is null;
create index alerts_look on alerts (look_at) where look_at is not null;

-- The few seconds before it is looked at are quiet: what comes and goes within them is told to nobody.
create function alert_changed() returns trigger language plpgsql as $$
declare
    ranks constant text[] := array['note', 'warning', 'critical'];
    lately boolean;
begin
    new.changed_at := now();
    new.look_at := now() + interval '5 seconds';
    if tg_op = 'UPDATE' then
        lately := old.changed_at > now() - interval '10 minutes';
        if not lately then
            new.flaps := 0;
        end if;
        if old.resolved_at is not null and new.resolved_at is null then
            new.raising := old.raising + 1;
            if lately then
                new.flaps := old.flaps + 1;
            end if;
            if not lately or old.told_at is null then  -- people heard that it was over: whoever had it has it no more
                new.acked_by := null;
            end if;
        end if;
        if array_position(ranks, new.severity) > array_position(ranks, old.severity) then
            new.acked_by := null;
        end if;
        if new.acked_by is null then
            new.acked_at := null;
            new.ack_note := null;
        end if;
    end if;
    return new;
end $$;
create trigger alert_raised before insert on alerts for each row execute function alert_changed();
create trigger alert_changed before update of severity, resolved_at on alerts for each row
    when ((old.resolved_at is null) <> (new.resolved_at is null) or old.severity <> new.severity)
    execute function alert_changed();

create table alert_messages (
    id         text collate "C" primary key,
    number     bigint generated always as identity,
    mode       text not null check (mode in ('live', 'test')),
    route      text collate "C" not null,
    severity   text not null,
    title      text not null,
    body       text not null,
    state      text not null default 'waiting' check (state in ('waiting', 'sent', 'failed')),
    attempts   integer not null default 0,
    refusals   integer not null default 0,        -- of these, how often the service answered that it does not take the message
    is_plain   boolean not null default false,    -- in place of one that was refused for what it said
    next_at    timestamptz not null default now(),
    error      text,
    created_at timestamptz not null default now(),
    sent_at    timestamptz
) with (fillfactor = 80);
comment on table alert_messages is 'Outbox of messages to the routes of FINALSALE_ALERT_URLS, which are named by scheme and hash; one route''s go out in order.';
create index alert_messages_waiting on alert_messages (route, number) where state = 'waiting';
create index alert_messages_lately on alert_messages (mode, created_at);

create table alert_tellings (
    realm    text not null,
    cause    text collate "C" not null,
    raising  integer not null,
    step     text collate "C" not null,    -- raised, a severity it rose to, again 1.., resolved, was
    route    text collate "C" not null,
    kind     text not null,
    severity text not null,
    customer text not null,
    subject  text not null,
    sentence text not null,
    since    timestamptz not null,
    flaps    integer not null,
    until    timestamptz,                   -- when it was over, of what nobody had been told
    urgent   boolean not null generated always as (severity = 'critical' and step not in ('resolved', 'was')) stored,
    made_at  timestamptz not null default now(),
    message  text collate "C" references alert_messages,
    dropped  text,                          -- why nobody needs to hear of it any more
    primary key (realm, cause, raising, step, route)
);
comment on table alert_tellings is 'What each route is told of each alert, once; `message` is the message that carries it, with others or alone.';
create index alert_tellings_waiting on alert_tellings (route, urgent desc, made_at) where message is null and dropped is null;
create index alert_tellings_message on alert_tellings (message) where message is not null;

-- What the vigil needs --------------------------------------------------------------------------------------------------------

alter table alerts add column closed_at timestamptz;
comment on column alerts.closed_at is 'When the review it is about was closed by a person. Judging raises it again only when it has something else to say.';

alter table alerts
    add column counted    bigint  not null default 1,   -- of how much people were told: 498 events more are not one dead event
    add column grown      integer not null default 0,   -- how often it grew much while it was open
    add column told_grown integer not null default 0;
create function alert_grew() returns trigger language plpgsql as $$
begin
    new.look_at := now();
    new.acked_by := null;
    new.acked_at := null;
    new.ack_note := null;
    return new;
end $$;
create trigger alert_grew before update of grown on alerts for each row when (new.grown > old.grown) execute function alert_grew();

create function keep_vigils_alert() returns trigger language plpgsql as $$
begin
    return null;
end $$;
create trigger alert_is_the_vigils before update of resolved_at on alerts for each row
    when (old.resolved_at is null and new.resolved_at is not null and old.kind in ('refund_failed', 'refund_in_doubt', 'review_waiting')
          and current_setting('finalsale.vigil', true) is distinct from '1')
    execute function keep_vigils_alert();
comment on trigger alert_is_the_vigils on alerts is
    'The previous release takes every alert of a customer for one of judging''s and resolves it: beside it, these would be over and come back in turns.';

create table signals (
    name    text not null,
    place   text collate "C" not null default '',  -- which machine or secret (as a hash) it is about
    since   timestamptz not null default now(),
    seen_at timestamptz not null default now(),
    detail  text not null default '',
    primary key (name, place)
);
comment on table signals is 'What a process saw that stands in no other table, for the vigil: a clock, Stripe''s answers, signatures. A handful of rows.';

-- which reviews nobody answered is asked every minute: without a look at the rows of those that were answered
create index decisions_reviews on decisions (realm, decided_at) include (id, subject, revision, clause) where verdict = 'review';
