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
