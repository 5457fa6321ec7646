-- The indexes that the console's pages read by. Only adds: the previous release keeps working on this schema.
-- All are partial and over rows that few events make, so that the hot path hardly notices them.

create index actions_open on actions (created_at, id) where state in ('proposed', 'review', 'failed');
create index actions_refunds on actions (realm, state, created_at, id) where kind = 'refund';
create index actions_refunded on actions (realm, first_sent_at) where kind = 'refund' and first_sent_at is not null;
create index cases_over on cases (realm, opened_at, id) where state <> 'open';

-- lists of customers and of alerts that are over
create index accounts_trouble on accounts (changed_at, customer) where standing <> 'good';
create index alerts_over on alerts (resolved_at) where resolved_at is not null;

-- one customer's alerts, those that are over as well; notices that wait for somebody
create index alerts_customer on alerts (realm, customer, raised_at);
create index notices_kept_back on notices (created_at) where state in ('failed', 'held');
