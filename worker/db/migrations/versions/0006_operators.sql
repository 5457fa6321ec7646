-- Operators of the console, their tokens and sessions. Only adds: the previous release keeps working on this schema.

create table operators (
    name       text collate "C" primary key check (name <> ''),
    folded     text collate "C" not null unique,   -- the name as the two-person rule compares it
    role       text not null check (role in ('read', 'decide', 'admin')),
    created_at timestamptz not null default now(),
    created_by text not null,
    removed_at timestamptz                         -- the name stays taken: what it did stays its own
);
comment on table operators is 'People who may sign in to the console, and what they may do there.';

create table operator_tokens (
    id         text collate "C" primary key,       -- the public part, shown in lists
    operator   text collate "C" not null references operators (name),
    hash       text not null,                      -- argon2id of the secret part
    sieve      bytea not null,                     -- 4 bytes of its sha256: what is surely wrong costs no argon2
    created_at timestamptz not null default now(),
    created_by text not null,
    expires_at timestamptz,
    revoked_at timestamptz
);
comment on table operator_tokens is 'Tokens that operators sign in with, as argon2id hashes; shown once when they are made.';
create index operator_tokens_operator on operator_tokens (operator);

create table console_sessions (
    hash       bytea primary key,                  -- sha256 of the cookie
    operator   text collate "C" not null references operators (name),
    token      text collate "C" not null references operator_tokens (id),
    csrf       bytea not null,
    said       text,                               -- a sentence to show once, on the next page
    began_at   timestamptz not null default now(),
    seen_at    timestamptz not null default now(),
    ends_at    timestamptz not null
);
comment on table console_sessions is 'Signed-in browsers. A session ends with its time, its token or its operator.';
create index console_sessions_operator on console_sessions (operator);
create index console_sessions_token on console_sessions (token);
create index console_sessions_ends on console_sessions (ends_at);

-- who may do what is chained too (0004), and must be what an operator act says

create function audit_content(o operators) returns bytea language sql stable as $$
    select sha256(convert_to(row(o.name, o.folded, o.role, o.created_by, extract(epoch from o.created_at),
                                 extract(epoch from o.removed_at))::text, 'UTF8'))
$$;

create function audit_content(t operator_tokens) returns bytea language sql stable as $$
    select sha256(convert_to(row(t.id, t.operator, t.hash, t.created_by, extract(epoch from t.created_at),
                                 extract(epoch from t.expires_at), extract(epoch from t.revoked_at))::text, 'UTF8'))
$$;

call audit_make_told('operators');
call audit_make_told('operator_tokens');
create trigger operators_audit after insert or update on operators for each row execute function audit_told_operators();
create trigger operator_tokens_audit after insert or update on operator_tokens for each row execute function audit_told_operator_tokens();

do $$
begin
    execute 'create or replace view audit_sources as ' || rtrim(pg_get_viewdef('audit_sources'::regclass), ';')
        || ' union all select ''operators'', '''', name, audit_content(t) from operators t'
        || ' union all select ''operator_tokens'', '''', id, audit_content(t) from operator_tokens t';
end $$;

create view audit_unexplained as
    with told as (
        select subject, act, convert_from(before, 'UTF8')::jsonb as before, convert_from(after, 'UTF8')::jsonb as after,
               row_number() over (partition by subject order by id desc) as back, count(*) over (partition by subject) as acts
        from operator_acts where act in ('operator.add', 'operator.role', 'operator.remove')
    ), chained as (
        select row_id, count(*) as links from audit_chain where source = 'operators' group by row_id
    )
    select 'operators' as source, o.name as row_id, 'no operator act explains that this is a ' || o.role as sentence
    from operators o left join told on told.subject = o.name and told.back = 1 left join chained on chained.row_id = o.name
    where told.subject is null
       or (told.act = 'operator.remove') is distinct from (o.removed_at is not null)
       or coalesce(told.after ->> 'role', told.before ->> 'role') is distinct from o.role
       or chained.links > told.acts
    union all
    select 'operator_tokens', t.id, 'no operator act explains who made this token'
    from operator_tokens t where not exists (
        select from operator_acts a
        where a.act in ('operator.add', 'operator.rotate') and a.subject = t.operator and convert_from(a.after, 'UTF8')::jsonb ->> 'token' = t.id)
    union all
    select 'erased_texts', t.source || ' ' || t.row_id, 'no act customers.erase explains that its words were erased'
    from audit_texts t where t.salt is null and not exists (
        select from operator_acts a where a.act = 'customers.erase' and a.acted_at = t.erased_at);
comment on view audit_unexplained is 'Changes of who may do what, and erasures, that no operator act explains.';
