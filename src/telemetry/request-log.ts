import { normalizeIp } from '@nestjs/throttler';
import type { FastifyInstance, FastifyReply, FastifyRequest } from 'fastify';
import type { Logger } from 'pino';
import { clientAddress } from '../http/client-address';
import type { ControlPlaneRequest } from '../http/control-plane-request';
import { waitedMs } from '../http/hang-up';
import { type RequestEnds, UNANSWERED } from '../http/request-ends';
import type { RouteDeclaration } from '../http/route-declaration';
import { traceOf } from '../http/trace-context';
import { parseId } from '../http/validation';
import type { Settings } from '../settings';
import { HEALTH_PATHS } from './health.controller';
import { LineBudget } from './line-budget';

/** An answer that took longer than this, without the time that a claim waited for work, is logged. */
const SLOW_MS = 1_000;
/** How often what was summed up is logged. */
const SUM_MS = 60_000;
/** Callers that are summed up one by one in that time; all others are summed up together. */
const MAX_CALLERS = 500;
/** Kinds of failure that are told apart for one caller. */
const MAX_FAILURES = 20;
/** Agents' ids that are named of those that one caller claimed in vain. */
const MAX_CLAIMED = 10;
/** Lines a second, and at once, for failures; and apart from them, so that strangers can't hide those, for the rest. */
const LINES: [perSecond: number, burst: number] = [20, 500];

const READS = new Set(['GET', 'HEAD', 'OPTIONS']);

/** Requests of one caller that got no line of their own: who it is, and how many by method, route and status. */
interface Sum {
  who: object;
  counts: Map<
    string,
    { method: string; route: string; status: number | 'any' | typeof UNANSWERED; count: number }
  >;
  /** Ids of agents that it claimed to be, and could not prove. */
  claimed: Set<number>;
}

/**
 * Logs requests: never a token, a header or a body. With `all` a line for each. With `errors` those that failed, were slow,
 * or changed something for an operator; a caller's repeated failures become one line a minute, so that no one can fill the
 * disk: at most 40 lines a second, and 501 a minute for what was summed up.
 */
export class RequestLog {
  private readonly failures = new LineBudget(...LINES);
  private readonly others = new LineBudget(...LINES);
  private readonly sums = new Map<string, Sum>();
  private readonly beyond: Sum = { who: { callers: 'others' }, counts: new Map(), claimed: new Set() };
  private readonly timer = setInterval(() => this.logSums(), SUM_MS).unref();

  constructor(
    private readonly logger: Logger,
    private readonly mode: Settings['logRequests'],
  ) {}

  /** Logs the requests of a server from now on, and answers each with its id. */
  attach(http: FastifyInstance, ends: RequestEnds): void {
    http.addHook('onRequest', (request, reply, done) => {
      reply.header('x-request-id', request.id);
      done();
    });
    // For the routes that have facts alone: every other answer would pay for it.
    http.addHook('onRoute', (route) => {
      const { logFacts } = (route.config as { declared?: RouteDeclaration } | undefined)?.declared ?? {};
      if (!logFacts) return;
      route.preSerialization = (request: ControlPlaneRequest, reply, payload, done) => {
        if (reply.statusCode < 400) request.logFacts = logFacts(payload as never);
        done(null, payload);
      };
    });
    ends.onEnd((request, reply, isAnswered) => {
      if (this.mode === 'all') this.logLine(request, reply, isAnswered);
      else this.judge(request, reply, isAnswered);
    });
  }

  /** Logs what was summed up, and begins again. */
  logSums(): void {
    for (const sum of [...this.sums.values(), this.beyond]) {
      const counts = [...sum.counts.values()];
      if (counts.length === 0) continue;
      const level = counts.some(({ status }) => Number(status) >= 500) ? 'warn' : 'info';
      const count = counts.reduce((total, each) => total + each.count, 0);
      const claimed = sum.claimed.size > 0 ? { claimed_agent_ids: [...sum.claimed] } : {};
      this.logger[level]({ ...sum.who, ...claimed, count, requests: counts }, 'requests summed up');
    }
    this.sums.clear();
    this.beyond.counts.clear();
    this.beyond.claimed.clear();
  }

  /** Logs what is summed up, and stops. */
  close(): void {
    clearInterval(this.timer);
    this.logSums();
  }

  private judge(request: ControlPlaneRequest, reply: FastifyReply, isAnswered: boolean): void {
    const status = isAnswered ? reply.statusCode : UNANSWERED;
    const isChange = request.operator !== undefined && !READS.has(request.method);
    if (
      isChange ||
      ((status === UNANSWERED || status < 400) && reply.elapsedTime - waitedMs(request) > SLOW_MS)
    ) {
      if (this.others.take()) this.logLine(request, reply, isAnswered);
      else this.sumUp(request, status);
    } else if (status !== UNANSWERED && status >= 400) {
      // A load balancer asks every second: of a server's own failures only these are summed up from the second on.
      const isAlways = status >= 500 && !HEALTH_PATHS.has(routeOf(request));
      const isFirst = !this.sums.has(keyOf(request)) && this.sums.size < MAX_CALLERS;
      if (isFirst)
        this.sums.set(keyOf(request), { who: whoIs(request), counts: new Map(), claimed: new Set() });
      if ((isAlways || isFirst) && this.failures.take()) this.logLine(request, reply, isAnswered);
      else this.sumUp(request, status);
    }
  }

  private sumUp(request: ControlPlaneRequest, status: number | typeof UNANSWERED): void {
    const { counts, claimed } = this.sums.get(keyOf(request)) ?? this.beyond;
    const claimedId = claimedAgentId(request);
    if (claimedId !== undefined && claimed.size < MAX_CLAIMED) claimed.add(claimedId);
    const { method } = request;
    const route = routeOf(request);
    const key = `${status} ${method} ${route}`;
    const known = counts.get(key);
    if (known) known.count++;
    else if (counts.size < MAX_FAILURES) counts.set(key, { method, route, status, count: 1 });
    else {
      const rest = counts.get('') ?? { method: 'any', route: 'any', status: 'any' as const, count: 0 };
      counts.set('', { ...rest, count: rest.count + 1 });
    }
  }

  private logLine(request: ControlPlaneRequest, reply: FastifyReply, isAnswered: boolean): void {
    const route = routeOf(request);
    const status = isAnswered ? reply.statusCode : UNANSWERED;
    const trace = traceOf(request);
    const level = HEALTH_PATHS.has(route) && (this.mode === 'all' || Number(status) < 400) ? 'debug' : 'info';
    this.logger[level](
      {
        request_id: request.id,
        method: request.method,
        route,
        status,
        duration_ms: Math.round(reply.elapsedTime * 100) / 100,
        address: clientAddress(request),
        agent_id: request.agent?.id,
        claimed_agent_id: claimedAgentId(request),
        operator: request.operator?.name,
        task_id: idInPath(request, '/v1/tasks/:id'),
        subject_agent_id: request.operator && idInPath(request, '/v1/agents/:id'),
        trace_id: trace?.traceId,
        span_id: trace?.spanId,
        ...request.logFacts,
      },
      'request',
    );
  }
}

const routeOf = (request: FastifyRequest): string => request.routeOptions.url ?? 'unknown';

/** The id of the agent that a caller said to be who was not let in as one: a number, so that nothing of it can be a token. */
function claimedAgentId({ agent, headers, refusal }: ControlPlaneRequest): number | undefined {
  const isRefused = refusal?.status === 401 || refusal?.status === 403 || refusal?.status === 429;
  return agent || !isRefused ? undefined : parseId(String(headers['x-agent-id']));
}

/** The id in a path that names what the request is about. */
function idInPath({ routeOptions: { url }, params }: ControlPlaneRequest, route: string): number | undefined {
  return url?.startsWith(route) ? parseId(String((params as { id?: unknown })?.id)) : undefined;
}

/** Whose requests are summed up together: an agent's, an operator's, or those of an address without credentials. */
function whoIs(request: ControlPlaneRequest): object {
  const { agent, operator } = request;
  // A host has a whole /64 of IPv6.
  const address = normalizeIp(clientAddress(request), 64);
  if (agent) return { agent_id: agent.id, address };
  return operator ? { operator: operator.name, address } : { address };
}

function keyOf(request: ControlPlaneRequest): string {
  if (request.agent) return `agent ${request.agent.id}`;
  return request.operator ? `operator ${request.operator.tokenId}` : normalizeIp(clientAddress(request), 64);
}
