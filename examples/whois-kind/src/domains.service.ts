import { Injectable } from '@nestjs/common';
import {
  AuditLog,
  type CounterInstrument,
  Database,
  fail,
  Meter,
  type OperatorIdentity,
  olderThan,
  type Page,
  pageOf,
  parseTimestamp,
  type TakenReport,
  type Transaction,
  toTimestamp,
} from 'dns-agent-control-plane/extension';
import type { DomainsQuery, DomainView } from './domains.dto';
import type { WhoisSpec } from './whois.dto';

interface DomainRow {
  domain: string;
  server: string;
  registrar: string | null;
  expires_at: number | null;
  checked_at: number;
  lease_id: number;
}

/** Owns whois_domains: the latest result of each domain. */
@Injectable()
export class DomainsService {
  private readonly checked: CounterInstrument<'expiry'>;

  constructor(
    private readonly database: Database,
    private readonly audit: AuditLog,
    meter: Meter,
  ) {
    this.checked = meter.counter({
      name: 'whois_domains_checked_total',
      help: 'Domains that a registry answered for, by whether it gave an expiry date.',
      labels: ['expiry'],
    });
  }

  /** Stores the results of successful checks. If a domain is reported twice, the later lease counts. */
  async record(tx: Transaction, reports: readonly TakenReport<WhoisSpec>[]): Promise<void> {
    const latest = new Map<string, DomainRow>();
    for (const report of [...reports].sort((a, b) => a.lease_id - b.lease_id)) {
      if (report.report !== 'completed' || report.outcome !== 'success') continue;
      const { lease_id, target: server, received_at: checked_at } = report;
      const domain = report.spec.domain.toLowerCase();
      const observed = new Map(report.observations.map(({ name, value }) => [name, value]));
      const [registrar, expiry] = [observed.get('registrar'), observed.get('expires_at')];
      latest.set(domain, {
        domain,
        server,
        // An agent can report anything: ignore values of another form.
        registrar: typeof registrar === 'string' ? registrar : null,
        expires_at: typeof expiry === 'string' ? (parseTimestamp(expiry) ?? null) : null,
        checked_at,
        lease_id,
      });
    }
    if (latest.size === 0) return;
    await tx.run(
      `INSERT INTO whois_domains (domain, server, registrar, expires_at, checked_at, lease_id)
       SELECT domain, server, registrar, expires_at, checked_at, lease_id FROM ${tx.dialect.rowset('$1', {
         domain: 'text',
         server: 'text',
         registrar: 'text',
         expires_at: 'integer',
         checked_at: 'integer',
         lease_id: 'integer',
       })} AS r WHERE true
       ON CONFLICT (domain) DO UPDATE SET server = excluded.server, registrar = excluded.registrar,
         expires_at = excluded.expires_at, checked_at = excluded.checked_at, lease_id = excluded.lease_id
       WHERE excluded.lease_id > whois_domains.lease_id`,
      JSON.stringify([...latest.values()]),
    );
    tx.afterCommit(() => {
      for (const { expires_at } of latest.values())
        this.checked.add({ expiry: expires_at === null ? 'unsaid' : 'said' });
    });
  }

  /** Lists domains, the last one checked first. */
  list(query: DomainsQuery): Promise<Page<DomainView>> {
    const before = query.expires_before === undefined ? null : (parseTimestamp(query.expires_before) ?? null);
    return this.database.read(async (statements) => {
      const rows = await statements.rows<DomainRow>(
        `SELECT * FROM whois_domains WHERE lease_id < $1 AND (CAST($2 AS bigint) IS NULL OR expires_at < $2)
         ORDER BY lease_id DESC LIMIT $3`,
        olderThan(query),
        before,
        query.limit + 1,
      );
      return pageOf(rows, query.limit, (row) => row.lease_id, viewOf);
    });
  }

  /** Deletes a domain. @throws ERR_NOT_FOUND it is not in the table */
  forget(by: OperatorIdentity, domain: string): Promise<void> {
    return this.database.write(async (tx) => {
      const name = domain.toLowerCase();
      const gone = await tx.run('DELETE FROM whois_domains WHERE domain = $1', name);
      if (gone === 0) throw fail('ERR_NOT_FOUND', { domain });
      await this.audit.record(tx, by, { action: 'whois-domain.forget', subject: `whois-domain/${name}` });
    });
  }
}

function viewOf({ domain, server, registrar, expires_at, checked_at }: DomainRow): DomainView {
  return {
    domain,
    server,
    registrar,
    expires_at: toTimestamp(expires_at),
    checked_at: toTimestamp(checked_at),
  };
}
