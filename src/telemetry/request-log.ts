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

/** Answers that took longer than this are logged, in ms, not counting the time that a claim waited for work. */
const SLOW_MS = 1_000;
/** How often summaries are logged, in ms. */
const SUMMARY_INTERVAL_MS = 60_000;
/** How many callers get a summary of their own; all others share one. */
const MAX_CALLERS = 500;
/** How many kinds of failure the summary of one caller distinguishes. */
const MAX_FAILURES = 20;
/** How many claimed agent ids the summary of one caller names. */
const MAX_CLAIMED = 10;
/** Log lines per second, and at once: for failures, and separately for the rest, so that neither can hide the other. */
const LINES: [perSecond: number, burst: number] = [20, 500];

const READS = new Set(['GET', 'HEAD', 'OPTIONS']);

/** The requests of one caller that got no line of their own, counted by method, route and status. */
interface Summary {
  caller: object;
  counts: Map<
    string,
    { method: string; route: string; status: number | 'any' | typeof UNANSWERED; count: number }
  >;
  /** Ids of agents that it claimed to be without valid credentials. */
  claimed: Set<number>;
}

/**
 * Logs requests, without tokens, headers or bodies. With `all`, one line each. With `errors`, those that failed, were slow, or
 * changed something for an operator; the repeated failures of a caller become one line per minute. No client can fill the
 * disk: at most 40 lines per second, and 501 summaries per minute, are written.
 */
export class RequestLog {
  private readonly failures = new LineBudget(...LINES);
  private readonly others = new LineBudget(...LINES);
  private readonly summaries = new Map<string, Summary>();
  private readonly beyond: Summary = { caller: { callers: 'others' }, counts: new Map(), claimed: new Set() };
  private readonly timer = setInterval(() => this.logSummaries(), SUMMARY_INTERVAL_MS).unref();

  constructor(
    private readonly logger: Logger,
    private readonly mode: Settings['logRequests'],
  ) {}

  /** Logs the requests of a server from now on, and adds the id to each answer. */
  attach(http: FastifyInstance, ends: RequestEnds): void {
    http.addHook('onRequest', (request, reply, done) => {
      reply.header('x-request-id', request.id);
      done();
    });
    // Only on routes with facts: the hook costs time on every answer.
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
      else this.logOrSummarize(request, reply, isAnswered);
    });
  }

  /** Logs the summaries, and starts new ones. */
  logSummaries(): void {
    for (const summary of [...this.summaries.values(), this.beyond]) {
      const counts = [...summary.counts.values()];
      if (counts.length === 0) continue;
      const level = counts.some(({ status }) => Number(status) >= 500) ? 'warn' : 'info';
      const count = counts.reduce((total, each) => total + each.count, 0);
      const claimed = summary.claimed.size > 0 ? { claimed_agent_ids: [...summary.claimed] } : {};
      this.logger[level]({ ...summary.caller, ...claimed, count, requests: counts }, 'requests summed up');
    }
    this.summaries.clear();
    this.beyond.counts.clear();
    this.beyond.claimed.clear();
  }

  /** Logs the last summaries, and stops. */
  close(): void {
    clearInterval(this.timer);
    this.logSummaries();
  }

  private logOrSummarize(request: ControlPlaneRequest, reply: FastifyReply, isAnswered: boolean): void {
    const status = isAnswered ? reply.statusCode : UNANSWERED;
    const isChange = request.operator !== undefined && !READS.has(request.method);
    if (
      isChange ||
      ((status === UNANSWERED || status < 400) && reply.elapsedTime - waitedMs(request) > SLOW_MS)
    ) {
      if (this.others.take()) this.logLine(request, reply, isAnswered);
      else this.summarize(request, status);
    } else if (status !== UNANSWERED && status >= 400) {
      // Load balancers check health every second: of the server's own failures, only these are summarized.
      const isAlways = status >= 500 && !HEALTH_PATHS.has(routeOf(request));
      const isFirst = !this.summaries.has(keyOf(request)) && this.summaries.size < MAX_CALLERS;
      if (isFirst)
        this.summaries.set(keyOf(request), {
          caller: describeCaller(request),
          counts: new Map(),
          claimed: new Set(),
        });
      if ((isAlways || isFirst) && this.failures.take()) this.logLine(request, reply, isAnswered);
      else this.summarize(request, status);
    }
  }

  private summarize(request: ControlPlaneRequest, status: number | typeof UNANSWERED): void {
    const { counts, claimed } = this.summaries.get(keyOf(request)) ?? this.beyond;
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

/** The agent id that a refused caller claimed: parsed as a number, so that it can't be a token. */
function claimedAgentId({ agent, headers, refusal }: ControlPlaneRequest): number | undefined {
  const isRefused = refusal?.status === 401 || refusal?.status === 403 || refusal?.status === 429;
  return agent || !isRefused ? undefined : parseId(String(headers['x-agent-id']));
}

/** The id in the path of a route. */
function idInPath({ routeOptions: { url }, params }: ControlPlaneRequest, route: string): number | undefined {
  return url?.startsWith(route) ? parseId(String((params as { id?: unknown })?.id)) : undefined;
}

/** Describes a caller: an agent, an operator, or an address without credentials. */
function describeCaller(request: ControlPlaneRequest): object {
  const { agent, operator } = request;
  // One IPv6 host has a whole /64.
  const address = normalizeIp(clientAddress(request), 64);
  if (agent) return { agent_id: agent.id, address };
  return operator ? { operator: operator.name, address } : { address };
}

function keyOf(request: ControlPlaneRequest): string {
  if (request.agent) return `agent ${request.agent.id}`;
  return request.operator ? `operator ${request.operator.tokenId}` : normalizeIp(clientAddress(request), 64);
}
