-- Statements of what people are told of alerts: transitions become tellings, tellings become messages, messages are sent.

-- name: plan_alerts_alone$
-- One worker at a time decides what is told, so that what comes together goes together and limits are counted once.
select pg_try_advisory_xact_lock(hashtextextended('finalsale alerts', 0));

-- name: alerts_to_look_at
-- Locked without waiting: whoever raises or resolves one of them now has it looked at again.
select realm, cause, kind, severity, customer, subject, sentence, raised_at, resolved_at, raising, flaps, changed_at,
       told_at, told_severity, told_step, steps_from, acked_by is not null as acked, grown, grown > told_grown as grew, now() as now
from alerts where look_at <= now() and realm ~ :realms
order by look_at limit :most for update skip locked;

-- name: alerts_looked_at!
update alerts set look_at = l.look_at, told_at = l.told_at, told_severity = l.told_severity, told_step = l.told_step,
                  steps_from = l.steps_from, told_grown = alerts.grown, raising = alerts.raising + l.anew::int
from unnest(:realms::text[], :causes::text[], :look_at::timestamptz[], :told_at::timestamptz[], :told_severities::text[],
            :told_steps::int[], :steps_from::timestamptz[], :anew::boolean[])
  as l (realm, cause, look_at, told_at, told_severity, told_step, steps_from, anew)
where alerts.realm = l.realm and alerts.cause = l.cause;

-- name: save_tellings!
insert into alert_tellings (realm, cause, raising, step, route, kind, severity, customer, subject, sentence, since, flaps, until)
select * from unnest(:realms::text[], :causes::text[], :raisings::int[], :steps::text[], :routes::text[], :kinds::text[],
                     :severities::text[], :customers::text[], :subjects::text[], :sentences::text[], :since::timestamptz[],
                     :flaps::int[], :until::timestamptz[])
on conflict do nothing;

-- name: drop_tellings!
-- Over before anybody heard of it.
update alert_tellings set dropped = 'it was over before it was told'
from unnest(:realms::text[], :causes::text[]) as l (realm, cause)
where alert_tellings.realm = l.realm and alert_tellings.cause = l.cause and message is null and dropped is null;

-- name: routes_that_heard
select distinct t.realm, t.cause, t.route
from unnest(:realms::text[], :causes::text[], :since::timestamptz[]) as l (realm, cause, since)
join alert_tellings t on t.realm = l.realm and t.cause = l.cause and t.made_at >= l.since and t.message is not null;

-- name: waiting_tellings
-- What is urgent first, however much else waits; only that where nothing else may be sent now.
select realm, cause, raising, step, route, kind, severity, customer, subject, sentence, since, flaps, until,
       extract(epoch from now() - made_at)::float8 as age_s
from alert_tellings
where message is null and dropped is null and route = :route and realm ~ :realms and (urgent or not :only_urgent::boolean)
order by urgent desc, made_at, realm, cause limit :most;

-- name: messages_lately^
-- How many a route was sent, or is to be sent, within the hour, and whether one of them (a critical one) could not be sent.
select (select count(*) from alert_messages m where m.mode = :mode and m.created_at > now() - interval '1 hour'
        and m.route = :route)::int as messages,
       (select extract(epoch from now() - max(m.created_at))::float8 from alert_messages m
        where m.mode = :mode and m.created_at > now() - interval '1 hour' and m.route = :route) as last_s,
       exists (select from alert_messages w where w.route = :route and w.mode = :mode and w.state = 'waiting'
               and w.error is not null) as stuck,
       exists (select from alert_messages w where w.route = :route and w.mode = :mode and w.state = 'waiting'
               and w.error is not null and w.severity = 'critical') as stuck_critical;

-- name: kinds_told_lately
-- Of these kinds, those of which a route was told something critical within the hour.
select k.kind from unnest(:kinds::text[]) as k (kind)
where exists (select from alert_messages m join alert_tellings t on t.message = m.id
              where m.mode = :mode and m.created_at > now() - interval '1 hour' and m.route = :route
                and t.kind = k.kind and t.urgent);

-- name: save_message!
-- One with the same tellings was set aside before: it is tried anew.
insert into alert_messages (id, mode, route, severity, title, body, is_plain)
values (:id, :mode, :route, :severity, :title, :body, :is_plain)
on conflict (id) do update set state = 'waiting', attempts = 0, refusals = 0, error = null, next_at = now()
where alert_messages.state = 'failed';

-- name: tellings_in_message!
-- With what waited before about the same: the newest of it is what is true.
with carried as (
    select realm, cause, max(raising) as raising
    from unnest(:realms::text[], :causes::text[], :raisings::int[]) as l (realm, cause, raising) group by 1, 2
)
update alert_tellings t set message = :message
from carried c
where t.realm = c.realm and t.cause = c.cause and t.raising <= c.raising and t.route = :route and t.message is null
  and t.dropped is null;

-- name: claim_message^
-- A route's oldest message, unless somebody is sending it; where that one could not be sent, one that is critical goes past it.
-- The lease in `next_at` is the claim: it ends by itself. `failing_s`: since when the oldest one that could not be sent waits.
with waiting as (
    select id, number, next_at, severity, error, created_at from alert_messages
    where route = :route and mode = :mode and state = 'waiting'
), next as (
    select id, next_at from waiting
    order by (severity = 'critical' and (select error is not null from waiting order by number limit 1)) desc, number limit 1
)
update alert_messages m set attempts = m.attempts + 1, next_at = now() + make_interval(secs => :lease_s)
from next
where m.id = next.id and next.next_at <= now() and m.state = 'waiting' and m.next_at <= now()
returning m.id, m.title, m.body, m.severity, m.attempts, m.refusals, m.is_plain,
          extract(epoch from now() - m.created_at)::float8 as age_s,
          (select extract(epoch from now() - min(created_at))::float8 from waiting where error is not null) as failing_s;

-- name: message_sent^
update alert_messages set state = 'sent', sent_at = now(), error = null
where id = :id and state = 'waiting' and attempts = :attempts
returning id;

-- name: dissolve_overtaken!
-- What one that was sent went past, and which tells of the same: it would be news of yesterday. The rest of it is told anew.
with sent as (select id, number, route, mode from alert_messages where id = :id),
overtaken as (
    update alert_messages m set state = 'failed', error = 'it was overtaken, and what it told besides is told anew'
    from sent s
    where m.route = s.route and m.mode = s.mode and m.state = 'waiting' and m.number < s.number
      and exists (select from alert_tellings t join alert_tellings n on n.realm = t.realm and n.cause = t.cause
                  where t.message = m.id and n.message = s.id)
    returning m.id
)
update alert_tellings t
set message = (select distinct n.message from alert_tellings n where n.realm = t.realm and n.cause = t.cause and n.message = :id)
from overtaken o where t.message = o.id;

-- name: told_in_message
select kind, count(*)::int as tellings from alert_tellings where message = :id group by kind order by 2 desc, 1;

-- name: tellings_of_refused!
update alert_tellings set message = :plain where message = :refused;

-- name: message_postponed!
update alert_messages set error = :error, refusals = refusals + :refused::boolean::int, next_at = now() + make_interval(secs => :wait_s)
where id = :id and state = 'waiting' and attempts = :attempts;

-- name: message_given_up!
update alert_messages set state = 'failed', error = :error where id = :id and state = 'waiting' and attempts = :attempts;

-- name: message_set_aside^
update alert_messages set state = 'failed', error = :error where id = :id and state = 'waiting' and attempts = :attempts returning id;

-- name: raise_route_failed!
insert into alerts (realm, cause, kind, severity, customer, subject, sentence)
values (:realm, :cause, 'alert_route_failed', :severity, '', :route, :sentence)
on conflict (realm, cause) do update
set severity = excluded.severity, sentence = excluded.sentence, resolved_at = null,
    raised_at = case when alerts.resolved_at is null then alerts.raised_at else excluded.raised_at end;

-- name: resolve_route_failed!
update alerts set resolved_at = now() where realm = :realm and cause = :cause and resolved_at is null;

-- name: resolve_routes_right!
-- Routes that were wrong, and can be used now.
update alerts set resolved_at = now()
where realm = :realm and customer = '' and kind = 'alert_route_failed' and severity = 'critical' and resolved_at is null
  and subject = any(:routes::text[]);

-- name: failed_routes
select subject, sentence from alerts
where realm = any(:realms::text[]) and customer = '' and kind = 'alert_route_failed' and resolved_at is null order by subject;

-- name: is_worker_alive$
select exists (select from workers where role = 'worker' and seen_at > now() - interval '2 minutes');

-- name: messages_of_lost_routes!
-- To routes that are set no more, an hour being left to a deployment of which only some workers know the new ones.
update alert_messages set state = 'failed', error = 'FINALSALE_ALERT_URLS does not name this route any more'
where state = 'waiting' and mode = :mode and not route = any(:routes::text[]) and next_at < now() - interval '1 hour';

-- name: tellings_of_lost_routes!
update alert_tellings set dropped = 'FINALSALE_ALERT_URLS does not name this route any more'
where message is null and dropped is null and realm ~ :realms and not route = any(:routes::text[])
  and made_at < now() - interval '1 hour';

-- name: lost_routes_alerts!
update alerts set resolved_at = now()
where realm = :mode and customer = '' and kind = 'alert_route_failed' and resolved_at is null and not subject = any(:routes::text[]);

-- name: acknowledge_alerts
update alerts set acked_by = :by, acked_at = now(), ack_note = :note
where realm = any(:realms::text[]) and (:cause::text is null or cause = :cause) and resolved_at is null and acked_by is null
returning realm, cause, kind, severity;

-- name: read_alert
select realm, cause, kind, severity, customer, subject, sentence, raised_at, resolved_at, raising, flaps,
       told_at, told_severity, told_step, acked_by, acked_at, ack_note
from alerts where realm = any(:realms::text[]) and cause = :cause;

-- name: deliveries_of_alert
select t.step, t.route, t.severity, t.made_at, t.dropped, m.id as message, m.state, m.attempts, m.error, m.next_at, m.sent_at
from alert_tellings t left join alert_messages m on m.id = t.message
where t.realm = :realm and t.cause = :cause
order by t.made_at desc, t.step, t.route limit :most;

-- name: routes_lately
select route, count(*) filter (where state = 'sent')::int as sent, count(*) filter (where state = 'waiting')::int as waiting,
       count(*) filter (where state = 'failed')::int as failed, max(sent_at) as last_sent,
       max(error) filter (where state <> 'sent') as error
from alert_messages where mode = :mode and created_at > now() - interval '7 days' group by route;
