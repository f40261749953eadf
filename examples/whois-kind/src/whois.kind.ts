import {
  type ErrorDetails,
  type TakenReport,
  TaskKind,
  type TaskKindHandler,
  type Transaction,
} from 'dns-agent-control-plane/extension';
import { DomainsService } from './domains.service';
import { WhoisSpec } from './whois.dto';

/** Asks a whois server about a domain. */
@TaskKind('whois', { spec: WhoisSpec })
export class WhoisKind implements TaskKindHandler<WhoisSpec> {
  constructor(private readonly domains: DomainsService) {}

  check({ server }: WhoisSpec): ErrorDetails {
    const port = Number(server?.split(':')[1] ?? 43);
    return port >= 1 && port <= 65_535 ? {} : { server: 'must have a port from 1 to 65535' };
  }

  /** Tasks that ask the same server share a window: a ceiling on it is kept across the fleet. */
  target({ server }: WhoisSpec): string {
    return server?.toLowerCase() ?? 'whois.iana.org';
  }

  onReports(tx: Transaction, reports: readonly TakenReport<WhoisSpec>[]): Promise<void> {
    return this.domains.record(tx, reports);
  }
}
