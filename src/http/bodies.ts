import type { IncomingMessage, ServerResponse } from 'node:http';
import type { FastifyInstance } from 'fastify';
import { type ApiError, fail } from '../errors';
import { DEFAULT_BODY_LIMIT, MAX_BODY } from './body-limit.decorators';
import type { ControlPlaneRequest } from './control-plane-request';
import { type BodyShape, countValues, parseJsonBody, VALUE_BYTES } from './json-body';
import { refuseEncoded } from './protocol-checks';
import { declarationOf } from './route-declaration';

const KIB = 1024;
const MIB = 1024 * KIB;

/** How much the bodies may come to of requests that are not answered yet, as sent and as parsed, in bytes. */
interface Bounds {
  /** Of all callers of the sort. */
  readonly inAll: number;
  /** Of one caller. */
  readonly each: number;
}

/** Of callers without credentials: what they may send is small, and many of them may be one. */
const STRANGERS: Bounds = { inAll: 32 * MIB, each: 2 * MIB };
const KNOWN: Bounds = { inAll: 256 * MIB, each: 64 * MIB };

/** A body up to this size is taken in beyond the bound of all: a heartbeat, a claim, a report of the usual size. */
const SMALL_BODY = 64 * KIB;
const SMALL_RESERVE = 64 * MIB;

/** How much memory a body has at first; it doubles as the body comes. */
const FIRST_BYTES = 4 * KIB;

/** A body that is slower than this, after a while, is given up: in milliseconds and bytes per second. */
const GRACE_MS = 10_000;
const SLOWEST = KIB;
const CHECKING_MS = 1_000;

/** How much of a body that is not wanted is read, so that its sender gets to read the answer; and for how long. */
const MAX_DISCARDED = MAX_BODY;
const MAX_DISCARDED_OF_FLOOD = 64 * KIB;
const DISCARDING_MS = 10_000;

/** Counts bodies that can't be read against their senders. */
export interface ParseFailures {
  /** @throws ERR_RATE_LIMITED the caller has sent too many */
  check(caller: string): void;
  charge(caller: string): void;
}

type Done = (error: Error | null, body?: unknown) => void;

/** A body on its way. It takes memory as it comes, whatever length was announced. */
class IncomingBody {
  received = 0;
  private buffer = Buffer.alloc(0);

  /**
   * @param hold takes so many bytes more, of what is then a body of that size; false if there is no room
   * @param giveUp ends it before it is there
   */
  constructor(
    readonly startedAt: number,
    private readonly limit: number,
    private readonly announced: number | undefined,
    private readonly hold: (bytes: number, size: number) => boolean,
    readonly giveUp: (error: ApiError) => void,
  ) {}

  get bytes(): Buffer {
    return this.buffer.subarray(0, this.received);
  }

  /** @returns why the body can't be taken in */
  add(chunk: Buffer): ApiError | undefined {
    const received = this.received + chunk.length;
    if (received > this.limit) return tooLarge(this.limit);
    if (received > this.buffer.length) {
      const size = this.sizeFor(received);
      if (!this.hold(size - this.buffer.length, size)) return tooMany();
      // Copied: chunks of a byte each would take a hundred times as much.
      const larger = Buffer.allocUnsafeSlow(size);
      this.buffer.copy(larger, 0, 0, this.received);
      this.buffer = larger;
    }
    chunk.copy(this.buffer, this.received);
    this.received = received;
    return undefined;
  }

  /** Takes the memory of its values, once it is there. @returns false if there is no room */
  holdValues(values: number): boolean {
    return this.hold(values * VALUE_BYTES, this.received);
  }

  /** Why a body that has ended is none. */
  get problem(): ApiError | undefined {
    return this.announced === undefined || this.announced === this.received
      ? undefined
      : fail('ERR_VALIDATION', { body: 'does not have the length announced' });
  }

  /** Twice as much as there is, but no more than can be needed. */
  private sizeFor(received: number): number {
    const most = this.announced ?? this.limit;
    return Math.max(received, Math.min(most, Math.max(FIRST_BYTES, 2 * this.buffer.length)));
  }
}

/**
 * Reads the bodies of requests, after their callers are admitted. What they take of the memory is counted as it arrives and
 * until they are answered, for each caller and in all: an announced length takes nobody's place, and neither do many who
 * send slowly.
 */
export class Bodies {
  private readonly held = { strangers: 0, known: 0 };
  private readonly heldBy = new Map<string, number>();
  private readonly incoming = new Set<IncomingBody>();
  private readonly responses = new WeakMap<IncomingMessage, ServerResponse>();
  /** Callers that wait to be told to send their body. */
  private readonly expecting = new WeakSet<IncomingMessage>();
  private readonly timer: NodeJS.Timeout;

  private failures: ParseFailures = { check: () => undefined, charge: () => undefined };

  /**
   * @param now a clock that never goes back, in milliseconds
   * @param bounds how much may be held
   */
  constructor(
    private readonly now: () => number = () => performance.now(),
    private readonly bounds = { strangers: STRANGERS, known: KNOWN },
  ) {
    this.timer = setInterval(() => this.giveUpSlow(), CHECKING_MS).unref();
  }

  /** How many bytes are held of requests that are not answered. */
  get heldBytes(): number {
    return this.held.strangers + this.held.known;
  }

  /** Takes over the reading of bodies. Call it behind the hooks that admit callers. */
  guard(http: FastifyInstance, failures: ParseFailures): void {
    this.failures = failures;
    http.addHook('onRequest', (request, reply, done) => {
      if (hasBody(request.raw)) this.responses.set(request.raw, reply.raw);
      done();
    });
    http.addHook('onSend', (request, reply, _payload, done) => {
      // A caller that was not told to go on may send the body all the same, or its next request: what follows could be either.
      if (this.expecting.has(request.raw)) reply.header('connection', 'close');
      if (hasBody(request.raw) && !request.raw.complete && !request.raw.readableEnded)
        discard(request.raw, limitOfRest(request, reply));
      done();
    });
    // Node would ask for the body before anybody is asked who he is.
    http.server.on('checkContinue', (request: IncomingMessage, response: ServerResponse) => {
      this.expecting.add(request);
      http.server.emit('request', request, response);
    });
    http.removeAllContentTypeParsers();
    http.addContentTypeParser('application/json', (request, payload, done) => {
      try {
        this.read(request, payload, done as Done);
      } catch (error) {
        done(error as Error);
      }
    });
  }

  close(): void {
    clearInterval(this.timer);
  }

  /** Gives up bodies that come too slowly. */
  giveUpSlow(): void {
    const now = this.now();
    for (const body of this.incoming) {
      const lateMs = now - body.startedAt - GRACE_MS;
      if (lateMs > 0 && body.received < (lateMs / 1_000) * SLOWEST)
        body.giveUp(fail('ERR_VALIDATION', { request: 'did not arrive in time' }, { status: 408 }));
    }
  }

  private read(request: ControlPlaneRequest, payload: IncomingMessage, done: Done): void {
    const declaration = declarationOf(request);
    const limit = declaration?.bodyLimit ?? DEFAULT_BODY_LIMIT;
    const length = request.headers['content-length'];
    const announced = length === undefined ? undefined : Number(length);
    if (announced !== undefined && announced > limit) throw tooLarge(limit);
    refuseEncoded(request);
    const caller = request.caller ?? '';
    this.failures.check(caller);
    const response = this.responses.get(request.raw);
    if (this.expecting.delete(request.raw)) response?.writeContinue();

    const end = (error: ApiError | undefined): void => {
      payload.off('data', onData).off('end', onEnd).off('error', onError);
      this.incoming.delete(body);
      if (error) done(error);
      else this.parse(body, declaration?.bodyShape, caller, done);
    };
    const body = new IncomingBody(this.now(), limit, announced, this.hold(request, response), end);
    const onData = (chunk: Buffer): void => {
      const refusal = body.add(chunk);
      if (refusal) end(refusal);
    };
    const onEnd = (): void => end(body.problem);
    const onError = (): void => end(fail('ERR_VALIDATION', { body: 'was cut off' }));
    this.incoming.add(body);
    payload.on('data', onData).on('end', onEnd).on('error', onError);
  }

  private parse(body: IncomingBody, shape: BodyShape | undefined, caller: string, done: Done): void {
    let value: unknown;
    try {
      // Many clients name the type of a body that they do not send; a route that needs one will say so.
      if (body.received > 0) {
        if (!body.holdValues(countValues(body.bytes))) {
          done(tooMany());
          return;
        }
        value = parseJsonBody(body.bytes, shape);
      }
    } catch (refusal) {
      this.failures.charge(caller);
      done(refusal as Error);
      return;
    }
    done(null, value);
  }

  /**
   * Counts what a request holds until it is answered.
   * @returns takes so many bytes more, of what is then a body of that size; false if there is no room
   */
  private hold(
    request: ControlPlaneRequest,
    response: ServerResponse | undefined,
  ): (bytes: number, size: number) => boolean {
    const isKnown = request.agent !== undefined || request.operator !== undefined;
    const sort = isKnown ? 'known' : 'strangers';
    const bounds = this.bounds[sort];
    const caller = request.caller ?? '';
    let mine = 0;
    const count = (bytes: number) => {
      mine += bytes;
      this.held[sort] += bytes;
      const all = (this.heldBy.get(caller) ?? 0) + bytes;
      if (all > 0) this.heldBy.set(caller, all);
      else this.heldBy.delete(caller);
    };
    response?.once('close', () => count(-mine));
    return (bytes, size) => {
      // Who hung up would be counted forever.
      if (response?.destroyed) return false;
      const inAll = bounds.inAll + (isKnown && size <= SMALL_BODY ? SMALL_RESERVE : 0);
      if (this.held[sort] + bytes > inAll || (this.heldBy.get(caller) ?? 0) + bytes > bounds.each)
        return false;
      count(bytes);
      return true;
    };
  }
}

const hasBody = ({ headers }: IncomingMessage): boolean =>
  headers['transfer-encoding'] !== undefined || Number(headers['content-length'] ?? 0) > 0;

/** Who floods the server gets less patience than who is told something once. */
const limitOfRest = ({ agent, operator }: ControlPlaneRequest, { statusCode }: { statusCode: number }) =>
  agent || operator || statusCode !== 429 ? MAX_DISCARDED : MAX_DISCARDED_OF_FLOOD;

/**
 * Reads on and throws away: who is still sending would not get to read the answer if the connection was closed at once. In
 * bounds, then it is.
 */
function discard(raw: IncomingMessage, most: number): void {
  let left = most;
  // Of a request that has not ended its connection goes with it.
  const overdue = setTimeout(() => raw.destroy(), DISCARDING_MS).unref();
  raw
    .on('data', (chunk: Buffer) => {
      left -= chunk.length;
      if (left < 0) raw.destroy();
    })
    .once('close', () => clearTimeout(overdue))
    .once('error', () => undefined)
    .resume();
}

const tooLarge = (limit: number) =>
  fail(
    'ERR_VALIDATION',
    { body: `must not be larger than ${limit} bytes` },
    { status: 413, message: 'The body is too large.' },
  );

const tooMany = () =>
  fail('ERR_UNAVAILABLE', { reason: 'in_flight' }, { retryAfterMs: 1_000 + Math.random() * 4_000 });
