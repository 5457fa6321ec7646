-- The audit chain over decisions, actions, entries and acts, and the policy versions that were in force. Only adds: the previous
-- release keeps working on this schema, and what it writes is chained by the same triggers.

create table operator_acts (
    id       bigint generated always as identity primary key,
    realm    text not null,                        -- '' where it is about the whole deployment
    by_name  text not null check (by_name <> ''),
    role     text not null default '',
    via      text not null check (via in ('console', 'cli', 'app', 'worker')),
    act      text not null check (act <> ''),
    subject  text collate "C" not null,
    reason   text not null default '',
    before   bytea,                                -- JSON
    after    bytea,
    acted_at timestamptz not null default now()
);
comment on table operator_acts is 'Append-only: everything that a person changed, with name, reason, before and after.';
create index operator_acts_subject on operator_acts (subject, id);
create index operator_acts_by on operator_acts (by_name, id);
create index operator_acts_act on operator_acts (act, id);

create table policy_versions (
    id         bigint generated always as identity primary key,
    sha256     bytea not null,
    versions   text[] not null,
    agreements integer not null,
    body       bytea not null,                     -- the whole file
    worker     text not null,
    seen_at    timestamptz not null default now()
);
comment on table policy_versions is 'Append-only: every policy file that a worker began to judge by, whole, where it was not the newest one here.';

create table audit_queue (
    number    bigint generated always as identity primary key,
    source    text not null,                       -- a table, or `erased_texts`
    realm     text not null,                       -- '' where the row has none
    row_id    text not null,
    content   bytea not null,                      -- audit_content of the row as it was written
    queued_at timestamptz not null default now()
) with (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_cost_delay = 0);
comment on table audit_queue is 'What was written and is not chained yet, put here by triggers in the writer''s own transaction.';

create table audit_chain (
    seq        bigint primary key,                 -- 1, 2, 3 … without a gap
    source     text not null,
    realm      text not null,
    row_id     text collate "C" not null,
    content    bytea not null,
    hash       bytea not null,                     -- worker.audit.link of the hash before it and all the above
    chained_at timestamptz not null
);
comment on table audit_chain is 'Append-only: a hash of every row that must never change, in one chain. A row that may change is here once for each of its states.';

create table audit_texts (
    source   text collate "C" not null,
    row_id   text collate "C" not null,
    salt     bytea,                                -- null: the text was erased
    digest   bytea not null,                       -- sha256 of salt and text; this, not the text, is what the chain binds
    replaced bytea,                                -- sha256 of what stands in the place of an erased text
    erased_at timestamptz,                         -- the erasing transaction's now(), which its operator act bears too
    primary key (source, row_id)
);
comment on table audit_texts is 'Salted digests of words that a person may want erased. Without its salt a digest says nothing about the text.';

create table audit_backfill (
    source   text primary key,
    after    text collate "C" not null default '',
    until_id bigint,
    until_at timestamptz
);
comment on table audit_backfill is 'Tables whose rows from before the chain are still being chained, slice by slice, and how far that has come.';

create table audit_checks (
    id         bigint generated always as identity primary key,
    checked_at timestamptz not null default now(),
    ok         boolean not null,
    length     bigint not null,
    hash       bytea not null,
    problems   bigint not null,
    body       bytea not null                      -- what worker.audit.verify found, as JSON
);
comment on table audit_checks is 'Append-only: what each nightly verification of the whole chain found, and how long the chain was.';

-- what is bound --------------------------------------------------------------------------------------------------------------
-- Rows in their text form, which quotes unambiguously; moments as numbers, so that no session setting changes a hash.

create function audit_content(d decisions) returns bytea language sql stable as $$
    select sha256(convert_to(row(d.id, d.realm, d.subject, d.revision, d.customer, d.clause, d.rule, d.verdict, d.policy_version,
                                 d.fingerprint, extract(epoch from d.decided_at))::text, 'UTF8') || d.body)
$$;

create function audit_content(a actions) returns bytea language sql stable as $$
    select sha256(convert_to(row(a.id, a.realm, a.kind, a.subject, a.decision_subject, a.decision_id, a.customer, a.amount_minor,
                                 a.currency, a.state, a.generation, a.idempotency_key, a.refunded_before_minor,
                                 extract(epoch from a.first_sent_at), a.stripe_id, a.stripe_status, a.approved_by,
                                 extract(epoch from a.created_at), a.parameters is null)::text, 'UTF8')
                  || coalesce(a.parameters, ''))
$$;

create function audit_content(e entries) returns bytea language sql stable as $$
    select sha256(convert_to(row(e.id, e.realm, e.lot, e.customer, e.kind, e.amount, e.clause, e.cause, e.key,
                                 extract(epoch from e.effective_at), extract(epoch from e.recorded_at))::text, 'UTF8'))
$$;

create function audit_content(s standing_changes) returns bytea language sql stable as $$
    select sha256(convert_to(row(s.id, s.realm, s.customer, s.was, s.became, s.holds, s.cause,
                                 extract(epoch from s.changed_at))::text, 'UTF8'))
$$;

create function audit_content(o outages) returns bytea language sql stable as $$
    select sha256(convert_to(row(o.id, o.realm, extract(epoch from o.declared_at))::text, 'UTF8') || o.body)
$$;

create function audit_content(s switches) returns bytea language sql stable as $$
    select sha256(convert_to(row(s.name, s.is_on, s.by_name, s.reason, extract(epoch from s.set_at))::text, 'UTF8'))
$$;

create function audit_content(t api_tokens) returns bytea language sql stable as $$
    select sha256(convert_to(row(t.id, t.name, encode(t.hash, 'hex'), t.scopes, t.created_by, extract(epoch from t.created_at),
                                 extract(epoch from t.expires_at), extract(epoch from t.revoked_at))::text, 'UTF8'))
$$;

create function audit_content(p policy_versions) returns bytea language sql stable as $$
    select sha256(convert_to(row(p.id, p.versions, p.agreements, p.worker, extract(epoch from p.seen_at))::text, 'UTF8')
                  || p.sha256 || p.body)
$$;

create function audit_text(r review_acts) returns bytea language sql stable as $$ select convert_to(r.note, 'UTF8') $$;
create function audit_text(c case_acts) returns bytea language sql stable as $$ select convert_to(c.text, 'UTF8') $$;
create function audit_text(a acts) returns bytea language sql stable as $$ select a.body $$;
create function audit_text(o operator_acts) returns bytea language sql stable as $$
    select sha256(convert_to(o.reason, 'UTF8')) || coalesce(sha256(o.before), '') || '\x00' || coalesce(sha256(o.after), '')
$$;
comment on function audit_text(operator_acts) is 'The words of a row that can be erased.';

-- the digest of words that are still these, or that were erased and replaced by these; null, which equals nothing, otherwise
create function audit_digest(in_source text, in_id text, words bytea) returns bytea language sql stable as $$
    select digest from audit_texts where source = in_source and row_id = in_id
    and case when salt is null then replaced = sha256(words) else digest = sha256(salt || words) end
$$;

create function audit_content(r review_acts) returns bytea language sql stable as $$
    select sha256(convert_to(row(r.id, r.decision_id, r.act, r.by_name, extract(epoch from r.acted_at))::text, 'UTF8')
                  || audit_digest('review_acts', r.id::text, audit_text(r)))
$$;

create function audit_content(c case_acts) returns bytea language sql stable as $$
    select sha256(convert_to(row(c.id, c.case_id, c.act, c.by_name, extract(epoch from c.acted_at))::text, 'UTF8')
                  || audit_digest('case_acts', c.id::text, audit_text(c)))
$$;

create function audit_content(a acts) returns bytea language sql stable as $$
    select sha256(convert_to(row(a.id, a.realm, a.customer, a.kind, extract(epoch from a.acted_at))::text, 'UTF8')
                  || audit_digest('acts', a.id, audit_text(a)))
$$;

create function audit_content(o operator_acts) returns bytea language sql stable as $$
    select sha256(convert_to(row(o.id, o.realm, o.by_name, o.role, o.via, o.act, o.subject,
                                 extract(epoch from o.acted_at))::text, 'UTF8')
                  || audit_digest('operator_acts', o.id::text, audit_text(o)))
$$;

create function audit_content(t audit_texts) returns bytea language sql immutable as $$
    select sha256(t.digest || t.replaced || convert_to(extract(epoch from t.erased_at)::text, 'UTF8'))
$$;

create view audit_sources as
    select 'decisions' as source, realm, id as row_id, audit_content(t) as content from decisions t
    union all select 'actions', realm, id, audit_content(t) from actions t
    union all select 'entries', realm, id::text collate "C", audit_content(t) from entries t
    union all select 'standing_changes', realm, id::text collate "C", audit_content(t) from standing_changes t
    union all select 'outages', realm, id, audit_content(t) from outages t
    union all select 'acts', realm, id, audit_content(t) from acts t
    union all select 'operator_acts', realm, id::text collate "C", audit_content(t) from operator_acts t
    union all select 'review_acts', '', id::text collate "C", audit_content(t) from review_acts t
    union all select 'case_acts', '', id::text collate "C", audit_content(t) from case_acts t
    union all select 'policy_versions', '', id::text collate "C", audit_content(t) from policy_versions t
    union all select 'switches', '', name collate "C", audit_content(t) from switches t
    union all select 'api_tokens', '', id, audit_content(t) from api_tokens t
    union all select 'erased_texts', '', source || ' ' || row_id, audit_content(t) from audit_texts t where salt is null;
comment on view audit_sources is 'Every row that the chain binds, with what it must say of it.';

create function audit_rows(in_source text, ids text[]) returns table (row_id text, document jsonb) language plpgsql stable as $$
declare
    key text := case when in_source in ('switches', 'operators') then 'name' else 'id' end;
begin
    if in_source in ('decisions', 'actions', 'outages', 'acts', 'switches', 'operators') then
        return query execute format('select t.%1$I, to_jsonb(t) from %2$I t where t.%1$I = any($1)', key, in_source) using ids;
    elsif in_source in ('api_tokens', 'operator_tokens') then
        return query execute format('select t.id, to_jsonb(t) - ''hash'' - ''sieve'' from %I t where t.id = any($1)', in_source) using ids;
    elsif in_source in ('entries', 'standing_changes', 'operator_acts', 'review_acts', 'case_acts', 'policy_versions') then
        return query execute format('select t.id::text, to_jsonb(t) - ''text'' from %I t where t.id = any($1::bigint[])', in_source) using ids;
    end if;
end $$;
comment on function audit_rows is 'Rows that the chain binds as documents, for an auditor; without what customers wrote.';

-- writing --------------------------------------------------------------------------------------------------------------------

create function audit_told_decisions() returns trigger language plpgsql as $$
begin
    insert into audit_queue (source, realm, row_id, content)
    select 'decisions', t.realm, t.id, audit_content(t::decisions) from told t;
    return null;
end $$;

create function audit_told_entries() returns trigger language plpgsql as $$
begin
    insert into audit_queue (source, realm, row_id, content)
    select 'entries', t.realm, t.id, audit_content(t::entries) from told t;
    return null;
end $$;

create function audit_told_actions() returns trigger language plpgsql as $$
declare
    it actions := new;
begin
    insert into audit_queue (source, realm, row_id, content) values ('actions', new.realm, new.id, audit_content(it));
    return null;
end $$;

-- what is written seldom is told by one function for each table, made by this procedure; later migrations use it too
create procedure audit_make_told(name text) language plpgsql as $make$
begin
    execute format($function$
        create function audit_told_%1$s() returns trigger language plpgsql as $$
        declare
            it %1$I := new;
            told jsonb := to_jsonb(new);
            fresh bytea := uuid_send(gen_random_uuid());
        begin
            %2$s
            insert into audit_queue (source, realm, row_id, content)
            values (%1$L, coalesce(told ->> 'realm', ''), coalesce(told ->> 'id', told ->> 'name'), audit_content(it));
            return null;
        end $$
    $function$, name, case when name in ('review_acts', 'case_acts', 'acts', 'operator_acts') then format(
        'insert into audit_texts (source, row_id, salt, digest) values (%L, new.id::text, fresh, sha256(fresh || audit_text(it)));', name)
    end);
    execute format('alter function audit_told_%s() security definer set search_path = %I, pg_temp', name, current_schema());
    execute format('revoke execute on function audit_told_%s() from public', name);
end $make$;

do $make$
declare
    name text;
begin
    foreach name in array array['standing_changes', 'outages', 'policy_versions', 'switches', 'review_acts', 'case_acts', 'acts',
                                'operator_acts', 'api_tokens']
    loop
        call audit_make_told(name);
    end loop;
    foreach name in array array['review_acts', 'case_acts', 'acts', 'operator_acts']
    loop
        execute format($function$
            create function audit_erased_%1$s() returns trigger language plpgsql as $$
            declare
                it %1$I := new;
            begin
                with gone as (
                    update audit_texts t set salt = null, replaced = sha256(audit_text(it)), erased_at = now()
                    where source = %1$L and row_id = it.id::text
                    returning source || ' ' || row_id as row_id, audit_content(t) as content
                )
                insert into audit_queue (source, realm, row_id, content) select 'erased_texts', '', row_id, content from gone;
                return null;
            end $$
        $function$, name);
    end loop;
end $make$;

create trigger decisions_audit after insert on decisions referencing new table as told for each statement execute function audit_told_decisions();
create trigger entries_audit after insert on entries referencing new table as told for each statement execute function audit_told_entries();
create trigger actions_audit_new after insert on actions for each row execute function audit_told_actions();
create trigger actions_audit after update on actions for each row
    when ((old.customer, old.decision_subject, old.decision_id, old.amount_minor, old.currency, old.state, old.generation,
           old.idempotency_key, old.refunded_before_minor, old.first_sent_at, old.stripe_id, old.stripe_status, old.approved_by,
           old.parameters, old.created_at)
          is distinct from
          (new.customer, new.decision_subject, new.decision_id, new.amount_minor, new.currency, new.state, new.generation,
           new.idempotency_key, new.refunded_before_minor, new.first_sent_at, new.stripe_id, new.stripe_status, new.approved_by,
           new.parameters, new.created_at))
    execute function audit_told_actions();
create trigger standing_changes_audit after insert on standing_changes for each row execute function audit_told_standing_changes();
create trigger outages_audit after insert on outages for each row execute function audit_told_outages();
create trigger policy_versions_audit after insert on policy_versions for each row execute function audit_told_policy_versions();
create trigger switches_audit after insert or update on switches for each row execute function audit_told_switches();
create trigger api_tokens_audit after insert or update on api_tokens for each row execute function audit_told_api_tokens();
create trigger review_acts_audit after insert on review_acts for each row execute function audit_told_review_acts();
create trigger case_acts_audit after insert on case_acts for each row execute function audit_told_case_acts();
create trigger acts_audit after insert on acts for each row execute function audit_told_acts();
create trigger operator_acts_audit after insert on operator_acts for each row execute function audit_told_operator_acts();

-- keeping --------------------------------------------------------------------------------------------------------------------

create function audit_replaces(was text, became text) returns boolean language sql immutable as $$
    select became is not distinct from was or became = '[erased on request]'
$$;
comment on function audit_replaces is 'Whether words stayed, or the only words stand for them that erasing puts in their place.';

create function refuse_all_but_erasure() returns trigger language plpgsql as $$
declare
    words  text[] := coalesce(tg_argv, '{}');
    was    jsonb := to_jsonb(old);
    became jsonb := to_jsonb(new);
    fits   boolean;
begin
    case tg_table_name
        when 'audit_texts' then
            fits := new.salt is null;
        when 'acts' then  -- a document with a reason
            was := was - 'body' || jsonb_build_object('body', convert_from(old.body, 'UTF8')::jsonb - 'reason');
            became := became - 'body' || jsonb_build_object('body', convert_from(new.body, 'UTF8')::jsonb - 'reason');
            fits := audit_replaces(convert_from(old.body, 'UTF8')::jsonb ->> 'reason', convert_from(new.body, 'UTF8')::jsonb ->> 'reason');
        else
            select coalesce(bool_and(case when word in ('before', 'after') then coalesce(became ->> word = was ->> word, became ->> word is null)
                                          else audit_replaces(was ->> word, became ->> word) end), true) into fits
            from unnest(words) as word;
    end case;
    if current_setting('finalsale.erasing', true) is distinct from '1'
       or became - words is distinct from was - words or fits is not true then
        raise exception '% is append-only', tg_table_name using errcode = 'restrict_violation';
    end if;
    return new;
end $$;

-- what was begun at Stripe keeps its trace: nothing that would let it be sent as if it never was
create or replace function freeze_action() returns trigger language plpgsql as $$
begin
    if (new.id, new.realm, new.kind, new.subject) is distinct from (old.id, old.realm, old.kind, old.subject) then
        raise exception 'action % is about one thing for ever', old.id using errcode = 'restrict_violation';
    end if;
    if old.first_sent_at is not null and
       ((new.customer, new.amount_minor, new.currency, new.parameters, new.refunded_before_minor, new.first_sent_at)
        is distinct from
        (old.customer, old.amount_minor, old.currency, old.parameters, old.refunded_before_minor, old.first_sent_at)
        or not new.approved_by @> old.approved_by or new.state in ('proposed', 'withdrawn')) then
        raise exception 'action % was sent; its amount and parameters are frozen', old.id using errcode = 'restrict_violation';
    end if;
    if old.stripe_id is not null and (new.stripe_id is distinct from old.stripe_id or new.state not in ('sent', 'review', 'failed'))
       or new.generation < old.generation then
        raise exception 'action % was carried out as %', old.id, old.stripe_id using errcode = 'restrict_violation';
    end if;
    if old.idempotency_key is not null and new.idempotency_key is distinct from old.idempotency_key and
       (new.idempotency_key is null or new.generation = old.generation) then
        raise exception 'action % keeps its key until it has a new one', old.id using errcode = 'restrict_violation';
    end if;
    if old.state = 'sent' and new.state not in ('sent', 'review') then
        raise exception 'action % was sent; it cannot go back to %', old.id, new.state using errcode = 'restrict_violation';
    end if;
    return new;
end $$;

-- what leaves the queue is what was put at the end of the chain just now, and nothing else
create function refuse_unchained() returns trigger language plpgsql as $$
begin
    if exists (
        select source, realm, row_id collate "C", content from gone
        except all
        select source, realm, row_id, content from audit_chain
        where seq > (select max(seq) from audit_chain) - (select count(*) from gone)
    ) then
        raise exception 'audit_queue is emptied into the chain only' using errcode = 'restrict_violation';
    end if;
    return null;
end $$;

drop trigger review_acts_append_only on review_acts;
drop trigger case_acts_append_only on case_acts;
drop trigger acts_append_only on acts;
create trigger review_acts_append_only before update on review_acts for each row execute function refuse_all_but_erasure('note');
create trigger case_acts_append_only before update on case_acts for each row execute function refuse_all_but_erasure('text');
create trigger acts_append_only before update on acts for each row execute function refuse_all_but_erasure();
create trigger operator_acts_append_only before update on operator_acts for each row
    execute function refuse_all_but_erasure('reason', 'before', 'after');
create trigger audit_texts_append_only before update on audit_texts for each row execute function refuse_all_but_erasure('salt', 'replaced', 'erased_at');
create trigger review_acts_erased after update on review_acts for each row execute function audit_erased_review_acts();
create trigger case_acts_erased after update on case_acts for each row execute function audit_erased_case_acts();
create trigger acts_erased after update on acts for each row execute function audit_erased_acts();
create trigger operator_acts_erased after update on operator_acts for each row execute function audit_erased_operator_acts();

create trigger review_acts_no_delete before delete on review_acts for each row execute function refuse_change();
create trigger case_acts_no_delete before delete on case_acts for each row execute function refuse_change();
create trigger acts_no_delete before delete on acts for each row execute function refuse_change();
create trigger operator_acts_no_delete before delete on operator_acts for each row execute function refuse_change();
create trigger audit_texts_no_delete before delete on audit_texts for each row execute function refuse_change();
create trigger policy_versions_append_only before update or delete on policy_versions for each row execute function refuse_change();
create trigger audit_chain_append_only before update or delete on audit_chain for each row execute function refuse_change();
create trigger audit_checks_append_only before update or delete on audit_checks for each row execute function refuse_change();
create trigger audit_queue_chained after delete on audit_queue referencing old table as gone
    for each statement execute function refuse_unchained();
create trigger audit_queue_unchanged before update on audit_queue for each row execute function refuse_change();
create trigger review_acts_no_truncate before truncate on review_acts for each statement execute function refuse_change();
create trigger operator_acts_no_truncate before truncate on operator_acts for each statement execute function refuse_change();
create trigger policy_versions_no_truncate before truncate on policy_versions for each statement execute function refuse_change();
create trigger audit_chain_no_truncate before truncate on audit_chain for each statement execute function refuse_change();
create trigger audit_checks_no_truncate before truncate on audit_checks for each statement execute function refuse_change();
create trigger audit_queue_no_truncate before truncate on audit_queue for each statement execute function refuse_change();
create trigger audit_texts_no_truncate before truncate on audit_texts for each statement execute function refuse_change();

-- what was there before ------------------------------------------------------------------------------------------------------
-- Small tables now; those that grow with the customers by the workers, in slices, so that nobody waits for this migration.

insert into audit_texts (source, row_id, salt, digest)
select source, row_id, salt, sha256(salt || words) from (
    select 'review_acts' as source, id::text as row_id, uuid_send(gen_random_uuid()) as salt, audit_text(t) as words from review_acts t
    union all select 'case_acts', id::text, uuid_send(gen_random_uuid()), audit_text(t) from case_acts t
    union all select 'acts', id, uuid_send(gen_random_uuid()), audit_text(t) from acts t
) old;
insert into audit_queue (source, realm, row_id, content)
select source, realm, row_id, content from audit_sources
where source in ('outages', 'acts', 'review_acts', 'case_acts', 'switches', 'standing_changes', 'api_tokens') order by source, row_id;
insert into audit_backfill (source, until_id, until_at)
select 'decisions', null::bigint, clock_timestamp() where exists (select from decisions)
union all select 'actions', null, clock_timestamp() where exists (select from actions)
union all select 'entries', max(id), null from entries having max(id) is not null;

-- whoever may write a row chains it by that; nobody else needs the queue, nor the salts
do $$
declare
    name text;
begin
    for name in select proname from pg_proc where pronamespace = current_schema()::regnamespace and proname ~ '^audit_(told|erased)_'
    loop
        execute format('alter function %I() security definer set search_path = %I, pg_temp', name, current_schema());
        -- hung on a table of somebody else's, they would chain whatever stands in it
        execute format('revoke execute on function %I() from public', name);
    end loop;
end $$;
