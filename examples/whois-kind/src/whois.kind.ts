import {
  type ErrorDetails,
  type ObservedCheck,
  type TakenReport,
  type TargetSignal,
  TaskKind,
  type TaskKindHandler,
  type Transaction,
} from 'dns-agent-control-plane/extension';
import { DomainsService } from './domains.service';
import { SERVER, WhoisSpec } from './whois.dto';

/** Asks a whois server about a domain. */
@TaskKind('whois', { spec: WhoisSpec })
export class WhoisKind implements TaskKindHandler<WhoisSpec> {
  readonly targetForm = 'must be a whois server, such as whois.example.net or whois.example.net:4343';

  constructor(private readonly domains: DomainsService) {}

  check({ server }: WhoisSpec): ErrorDetails {
    const port = Number(server?.split(':')[1] ?? 43);
    return port >= 1 && port <= 65_535 ? {} : { server: 'must have a port from 1 to 65535' };
  }

  /** Gives tasks of one server one window, so that a limit on it holds across the fleet. */
  target({ server }: WhoisSpec): string {
    return spell(server ?? 'whois.iana.org');
  }

  /** Normalises a target in a limit or a filter: one server has one spelling. */
  parseTarget(text: string): string | undefined {
    return SERVER.test(text) ? spell(text) : undefined;
  }

  onReports(tx: Transaction, reports: readonly TakenReport<WhoisSpec>[]): Promise<void> {
    return this.domains.record(tx, reports);
  }

  /** Says what a report shows of the server: it refuses or resets the connections of those that ask too often. */
  signalOf({ observations }: ObservedCheck): Partial<TargetSignal> {
    const observed = new Map(observations.map(({ name, value }) => [name, value]));
    const [error, rtt] = [observed.get('error'), observed.get('rtt_ms')];
    return {
      signal: error === 'ECONNREFUSED' || error === 'ECONNRESET' ? 'pushed_back' : undefined,
      rttMs: typeof rtt === 'number' && rtt >= 0 ? rtt : null,
    };
  }
}

/** Normalises to lower case, without a final dot and without the default port. */
function spell(server: string): string {
  const [host = '', port] = server.toLowerCase().split(':');
  return host.replace(/\.$/, '') + (port === undefined || Number(port) === 43 ? '' : `:${Number(port)}`);
}
