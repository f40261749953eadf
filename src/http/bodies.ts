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

/** How much memory the bodies of unanswered requests may take, as bytes and as parsed values, in bytes. */
interface Bounds {
  /** Of all callers together. */
  readonly total: number;
  /** Of one caller. */
  readonly perCaller: number;
}

/** For callers without credentials: their bodies are small, and many callers may be one client. */
const ANONYMOUS: Bounds = { total: 32 * MIB, perCaller: 2 * MIB };
const AUTHENTICATED: Bounds = { total: 256 * MIB, perCaller: 64 * MIB };

/** Bodies up to this size may use the reserve beyond the total: heartbeats, claims, reports of the usual size. */
const SMALL_BODY = 64 * KIB;
const SMALL_RESERVE = 64 * MIB;

/** The first size of a body's buffer; it doubles as the body arrives. */
const FIRST_BYTES = 4 * KIB;

/** After this time, in ms, a body that arrives more slowly than this rate, in bytes per second, is refused. */
const GRACE_MS = 10_000;
const MIN_RATE = KIB;
const CHECK_INTERVAL_MS = 1_000;

/** How much of a refused body is read and discarded, in bytes, and for how long, in ms: its sender must get the answer. */
const MAX_DISCARDED = MAX_BODY;
const MAX_DISCARDED_OF_FLOOD = 64 * KIB;
const DISCARDING_MS = 10_000;

/** Counts bodies that can't be parsed, for each caller. */
export interface ParseFailures {
  /** @throws ERR_RATE_LIMITED the caller has sent too many */
  check(caller: string): void;
  charge(caller: string): void;
}

type Done = (error: Error | null, body?: unknown) => void;

const NO_BYTES = Buffer.alloc(0);

/** The response to a request with a body. A property, because a WeakMap of every request costs the garbage collector much. */
const RESPONSE = Symbol('response');

interface Arriving extends IncomingMessage {
  [RESPONSE]?: ServerResponse;
}

/** What is counted for a body, until its response is closed. */
const HELD = Symbol('held');

interface HoldingResponse extends ServerResponse {
  [HELD]?: { readonly bodies: Bodies; readonly group: Group; readonly caller: string; bytes: number };
}

type Group = 'anonymous' | 'authenticated';

/** One function for all responses, not a closure for each. */
function release(this: HoldingResponse): void {
  const held = this[HELD];
  this[HELD] = undefined;
  held?.bodies.count(held.group, held.caller, -held.bytes);
}

/** A body that is arriving. Its buffer grows as bytes arrive, regardless of the announced length. */
class IncomingBody {
  received = 0;
  private buffer: Buffer = NO_BYTES;

  /**
   * @param hold reserves more bytes of memory for a body that then has `size` bytes; false if there is no room
   * @param abort ends it before it is complete
   */
  constructor(
    readonly startedAt: number,
    private readonly limit: number,
    private readonly announced: number | undefined,
    private readonly hold: (bytes: number, size: number) => boolean,
    readonly abort: (error: ApiError) => void,
  ) {}

  get bytes(): Buffer {
    return this.buffer.length === this.received ? this.buffer : this.buffer.subarray(0, this.received);
  }

  /** Adds bytes. @returns the error if the body can't be taken */
  add(chunk: Buffer): ApiError | undefined {
    const received = this.received + chunk.length;
    if (received > this.limit) return tooLarge(this.limit);
    // Most bodies arrive at once, and are parsed before anything else happens.
    if (chunk.length === this.announced) {
      if (!this.hold(chunk.length, chunk.length)) return noRoom();
      this.buffer = chunk;
      this.received = received;
      return undefined;
    }
    if (received > this.buffer.length) {
      const size = this.sizeFor(received);
      if (!this.hold(size - this.buffer.length, size)) return noRoom();
      // Copied: a list of one-byte chunks would take a hundred times the memory.
      const larger = Buffer.allocUnsafeSlow(size);
      this.buffer.copy(larger, 0, 0, this.received);
      this.buffer = larger;
    }
    chunk.copy(this.buffer, this.received);
    this.received = received;
    return undefined;
  }

  /** Reserves memory for its parsed values. @returns false if there is no room */
  holdValues(values: number): boolean {
    return this.hold(values * VALUE_BYTES, this.received);
  }

  /** The error of a body that ended with another length than announced. */
  get problem(): ApiError | undefined {
    return this.announced === undefined || this.announced === this.received
      ? undefined
      : fail('ERR_VALIDATION', { body: 'does not have the length announced' });
  }

  /** Twice the buffer's size, but no more than the body can need. */
  private sizeFor(received: number): number {
    const most = this.announced ?? this.limit;
    return Math.max(received, Math.min(most, Math.max(FIRST_BYTES, 2 * this.buffer.length)));
  }
}

/**
 * Reads the bodies of requests, after their callers are admitted. Their memory is counted as they arrive and until they are
 * answered, per caller and in total: neither an announced length nor many slow senders keep others out.
 */
export class Bodies {
  private readonly held = { anonymous: 0, authenticated: 0 };
  private readonly heldBy = new Map<string, number>();
  private readonly incoming = new Set<IncomingBody>();
  /** Requests whose client waits for `100 Continue`. */
  private readonly expecting = new WeakSet<IncomingMessage>();
  private readonly timer: NodeJS.Timeout;

  private failures: ParseFailures = { check: () => undefined, charge: () => undefined };

  /**
   * @param now a monotonic clock, in ms
   * @param bounds how much memory may be held
   */
  constructor(
    private readonly now: () => number = () => performance.now(),
    private readonly bounds = { anonymous: ANONYMOUS, authenticated: AUTHENTICATED },
  ) {
    this.timer = setInterval(() => this.abortSlow(), CHECK_INTERVAL_MS).unref();
  }

  /** How many bytes unanswered requests hold. */
  get heldBytes(): number {
    return this.held.anonymous + this.held.authenticated;
  }

  /** Takes over the reading of bodies. Call it after the hooks that admit callers. */
  guard(http: FastifyInstance, failures: ParseFailures): void {
    this.failures = failures;
    http.addHook('onRequest', ({ raw }: { raw: Arriving }, reply, done) => {
      if (hasBody(raw)) raw[RESPONSE] = reply.raw;
      done();
    });
    http.addHook('onSend', (request, reply, _payload, done) => {
      const { raw } = request;
      // A client that got no `100 Continue` may send the body or its next request: what follows could be either.
      if (this.expecting.has(raw)) reply.header('connection', 'close');
      if (!raw.complete && hasBody(raw) && !raw.readableEnded) discard(raw, discardLimit(request, reply));
      done();
    });
    // Node would ask for the body before the caller is authenticated.
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

  /** Stops checking for slow bodies. */
  close(): void {
    clearInterval(this.timer);
  }

  /** Refuses bodies that arrive too slowly. */
  abortSlow(): void {
    const now = this.now();
    for (const body of this.incoming) {
      const lateMs = now - body.startedAt - GRACE_MS;
      if (lateMs > 0 && body.received < (lateMs / 1_000) * MIN_RATE)
        body.abort(fail('ERR_VALIDATION', { request: 'did not arrive in time' }, { status: 408 }));
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
    const response = (request.raw as Arriving)[RESPONSE];
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
      // Many clients send a content type without a body; a route that needs a body reports that.
      if (body.received > 0) {
        if (!body.holdValues(countValues(body.bytes))) {
          done(noRoom());
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
   * Counts the memory that a request holds until it is answered.
   * @returns a function that reserves more bytes for a body that then has `size` bytes; false if there is no room
   */
  private hold(
    request: ControlPlaneRequest,
    response: HoldingResponse | undefined,
  ): (bytes: number, size: number) => boolean {
    const isAuthenticated = request.agent !== undefined || request.operator !== undefined;
    const group = isAuthenticated ? 'authenticated' : 'anonymous';
    const bounds = this.bounds[group];
    const caller = request.caller ?? '';
    const held: NonNullable<HoldingResponse[typeof HELD]> = { bodies: this, group, caller, bytes: 0 };
    if (response) {
      response[HELD] = held;
      response.on('close', release);
    }
    return (bytes, size) => {
      // Already closed: the listener for close would never release this memory.
      if (response?.destroyed) return false;
      const total = bounds.total + (isAuthenticated && size <= SMALL_BODY ? SMALL_RESERVE : 0);
      if (this.held[group] + bytes > total || (this.heldBy.get(caller) ?? 0) + bytes > bounds.perCaller)
        return false;
      held.bytes += bytes;
      this.count(group, caller, bytes);
      return true;
    };
  }

  /** Counts bytes that a caller holds from now on; fewer if negative. For {@link release}. */
  count(group: Group, caller: string, bytes: number): void {
    this.held[group] += bytes;
    const ofCaller = (this.heldBy.get(caller) ?? 0) + bytes;
    if (ofCaller > 0) this.heldBy.set(caller, ofCaller);
    else this.heldBy.delete(caller);
  }
}

const hasBody = ({ headers }: IncomingMessage): boolean =>
  headers['transfer-encoding'] !== undefined || Number(headers['content-length'] ?? 0) > 0;

/** How many bytes of a refused body to read: fewer from a client that is over its quota. */
const discardLimit = ({ agent, operator }: ControlPlaneRequest, { statusCode }: { statusCode: number }) =>
  agent || operator || statusCode !== 429 ? MAX_DISCARDED : MAX_DISCARDED_OF_FLOOD;

/**
 * Reads the rest of a body and discards it: if the connection closed at once, a client still sending would lose the answer.
 * Beyond the limit, or after {@link DISCARDING_MS}, it closes.
 */
function discard(raw: IncomingMessage, limit: number): void {
  let left = limit;
  // Destroying an incomplete request closes its connection.
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

const noRoom = () =>
  fail('ERR_UNAVAILABLE', { reason: 'in_flight' }, { retryAfterMs: 1_000 + Math.random() * 4_000 });
