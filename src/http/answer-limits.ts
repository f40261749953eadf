import type { IncomingMessage, RequestListener, ServerResponse } from 'node:http';
import type { Socket } from 'node:net';
import type { FastifyInstance } from 'fastify';
import type { Settings } from '../settings';

/** How many pipelined requests may wait on one connection. */
export const MAX_PIPELINED = 16;
/** How many requests may wait on all connections together; each takes a few KiB of memory. */
const MAX_WAITING = 10_000;
/** The rate at which a client must read a large answer, in bytes per ms: 16 KiB per second. */
const MIN_RATE = 16;
/** How often the deadlines of answers are checked, in ms. */
const SWEEP_MS = 1_000;

/** A request, which is handled when the answers before it have been sent. */
interface Waiting {
  readonly request: IncomingMessage;
  readonly response: ServerResponse;
}

/** Properties of sockets and responses, because a WeakMap of every connection costs the garbage collector much. */
const CONNECTION = Symbol('connection');

interface Connected {
  [CONNECTION]?: Connection;
}

interface Connection {
  readonly limits: AnswerLimits;
  readonly socket: Socket;
  /** The request that is being handled, until its answer has been sent. */
  current: Waiting | undefined;
  readonly waiting: Waiting[];
  /** How many requests exceeded the limit. Node keeps them until the connection closes. */
  refused: number;
  /** Called when every request has been answered. */
  onAnswered: (() => void) | undefined;
  /** Bytes of the current answer that no other request shares. */
  bytes: number;
  /** When the client must have read the current answer, in ms of the monotonic clock. */
  deadline: number;
}

/**
 * Bounds the memory of answers that clients do not read.
 *
 * The requests of one connection are handled one after the other: the next starts when the operating system has taken the
 * answer before it, so a connection holds at most one answer. Node itself dispatches all requests of a packet at once, up to
 * some thousands, and keeps all their answers.
 * - If more than {@link MAX_PIPELINED} requests wait on a connection, those are answered, the others are not handled, and
 *   the connection closes.
 * - If an answer is not read in time, the connection closes. The time grows with the size of the answer.
 * - If all answers together exceed the limit, the connections whose clients have been reading longest close.
 */
export class AnswerLimits {
  /** Connections with an answer that is being sent, oldest first. */
  private readonly sending = new Set<Connection>();
  private handler: RequestListener = () => undefined;
  private timer: NodeJS.Timeout | undefined;
  private waiting = 0;
  private bytes = 0;
  private cutOffCount = 0;
  /** Connections closed since the start, by reason. */
  readonly closed = { unread_answer: 0, pipelined: 0, waiting: 0 };

  constructor(
    private readonly settings: Pick<Settings, 'answerTimeoutMs' | 'maxAnswerBytes'>,
    private readonly logger: { warn(facts: object, message: string): void },
  ) {}

  /** How many requests wait on connections, and how many bytes of answers are being sent. */
  get load(): { readonly waiting: number; readonly bytes: number } {
    return { waiting: this.waiting, bytes: this.bytes };
  }

  /** Wraps a server's handler with the limits. */
  guard(handler: RequestListener): RequestListener {
    this.handler = handler;
    return (request, response) => this.admit(request.socket, { request, response });
  }

  /** Counts the answers that Fastify sends, and closes connections that do not read them in time. */
  account(http: FastifyInstance): void {
    http.addHook('onSend', (_request, reply, payload, done) => {
      this.count(reply.raw, payload);
      done();
    });
    this.timer = setInterval(() => this.sweep(), SWEEP_MS).unref();
  }

  /** Stops checking deadlines. */
  close(): void {
    clearInterval(this.timer);
  }

  /**
   * Calls back when every complete request on the connection has been answered, so that an answer can be written to the
   * socket itself. Does not call back if the connection closes first. An incomplete request is no longer handled.
   */
  whenAnswered(socket: Socket, callback: () => void): void {
    const connection = (socket as Connected)[CONNECTION];
    const { current, waiting } = connection ?? {};
    if (waiting?.at(-1)?.request.complete === false) {
      waiting.pop();
      this.waiting--;
    }
    if (connection && current?.request.complete) connection.onAnswered ??= callback;
    else if (current?.response.headersSent) socket.destroySoon();
    else if (socket.writable) callback();
  }

  /** Closes connections whose answer has not been read by its deadline. */
  sweep(nowMs = performance.now()): void {
    for (const connection of this.sending) if (nowMs >= connection.deadline) this.cutOff(connection);
    if (this.cutOffCount === 0) return;
    this.logger.warn({ connections: this.cutOffCount }, 'closed connections that did not read their answers');
    this.cutOffCount = 0;
  }

  private admit(socket: Socket, request: Waiting): void {
    const connection = (socket as Connected)[CONNECTION] ?? this.open(socket);
    const { waiting } = connection;
    const isEnding = connection.refused > 0 || connection.onAnswered !== undefined || !socket.writable;
    if (!connection.current && !isEnding) {
      this.handle(connection, request);
      return;
    }
    if (isEnding || waiting.length >= MAX_PIPELINED) {
      if (connection.refused++ === 0) {
        if (!isEnding) this.closed.pipelined++;
        stopReading(socket);
      }
    } else {
      waiting.push(request);
    }
    if (++this.waiting > MAX_WAITING) {
      this.closed.waiting++;
      socket.destroy();
    }
  }

  private open(socket: Socket): Connection {
    const connection: Connection = {
      limits: this,
      socket,
      current: undefined,
      waiting: [],
      refused: 0,
      onAnswered: undefined,
      bytes: 0,
      deadline: 0,
    };
    (socket as Connected)[CONNECTION] = connection;
    socket.once('close', () => this.forget(connection));
    return connection;
  }

  private handle(connection: Connection, request: Waiting): void {
    const { response } = request;
    connection.current = request;
    (response as Connected)[CONNECTION] = connection;
    response.on('close', handleNext);
    // The client must know that no later request is answered.
    if (connection.refused > 0 && connection.waiting.length === 0) response.shouldKeepAlive = false;
    this.handler(request.request, response);
  }

  /** Handles the next request of a connection; after the last one, closes it or calls back. */
  handleNext(connection: Connection): void {
    this.release(connection);
    connection.current = undefined;
    const { socket, waiting, onAnswered } = connection;
    // After an answer with `Connection: close` the client gets no other, so the next request must have no effect.
    if (!socket.writable) return;
    const next = waiting.shift();
    if (next) {
      this.waiting--;
      this.handle(connection, next);
    } else if (connection.refused > 0) {
      socket.destroySoon();
    } else if (onAnswered) {
      connection.onAnswered = undefined;
      onAnswered();
    }
  }

  /** Counts an answer when it starts to be sent. */
  private count(response: ServerResponse, payload: unknown): void {
    const connection = (response as Connected)[CONNECTION];
    if (!response.socket || connection?.current?.response !== response || isStream(payload)) return;
    // Buffers are the documentation's texts, which all readers share.
    const bytes = typeof payload === 'string' ? Buffer.byteLength(payload) : 0;
    const size = Buffer.isBuffer(payload) ? payload.length : bytes;
    connection.bytes = bytes;
    connection.deadline = performance.now() + this.settings.answerTimeoutMs + size / MIN_RATE;
    this.bytes += bytes;
    this.sending.add(connection);
    for (const oldest of this.sending) {
      if (this.bytes <= this.settings.maxAnswerBytes) break;
      this.cutOff(oldest);
    }
  }

  private cutOff(connection: Connection): void {
    this.cutOffCount++;
    this.closed.unread_answer++;
    this.release(connection);
    connection.socket.destroy();
  }

  private release(connection: Connection): void {
    this.sending.delete(connection);
    this.bytes -= connection.bytes;
    connection.bytes = 0;
  }

  private forget(connection: Connection): void {
    this.release(connection);
    this.waiting -= connection.waiting.length + connection.refused;
    connection.waiting.length = 0;
    connection.refused = 0;
  }
}

/** One function for all responses, not a closure for each. */
function handleNext(this: ServerResponse & Connected): void {
  const connection = this[CONNECTION];
  this[CONNECTION] = undefined;
  connection?.limits.handleNext(connection);
}

const isStream = (payload: unknown): boolean =>
  typeof (payload as { pipe?: unknown } | null | undefined)?.pipe === 'function';

/** Discards what arrives on a connection from now on. Bytes that the parser has already taken are parsed to their end. */
export function stopReading(socket: Socket): void {
  process.nextTick(() => {
    // Node's parser reads from the handle directly until a listener for data is added.
    socket.on('data', ignore);
    socket.removeAllListeners('data');
    socket.on('data', ignore);
  });
}

const ignore = () => undefined;
