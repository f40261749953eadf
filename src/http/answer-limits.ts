import type { IncomingMessage, RequestListener, ServerResponse } from 'node:http';
import type { Socket } from 'node:net';
import type { FastifyInstance } from 'fastify';
import type { Settings } from '../settings';

/** How many requests may wait on one connection behind the one that is being answered. */
export const MAX_PIPELINED = 16;
/** How many requests may wait on all connections together; each takes a few KiB. */
const MAX_WAITING = 10_000;
/** The pace at which a client must read a large answer, in bytes a millisecond: 16 KiB a second. */
const MIN_PACE = 16;
/** How often answers are checked for their deadline, in milliseconds. */
const SWEEP_MS = 1_000;

/** A request that waits until the answer before it has been sent. */
interface Waiting {
  readonly request: IncomingMessage;
  readonly response: ServerResponse;
  readonly handle: () => void;
}

interface Connection {
  readonly socket: Socket;
  /** The request whose answer is being made or sent. */
  current: Waiting | undefined;
  readonly waiting: Waiting[];
  /** Requests beyond the limit. Node keeps them until the connection has closed. */
  refused: number;
  /** Called when every request has been answered. */
  onAnswered: (() => void) | undefined;
  /** Bytes of the current answer that were made for this request alone. */
  bytes: number;
  /** When the current answer must have been read, in ms of the monotonic clock. */
  deadline: number;
}

/**
 * Bounds the memory of answers that clients do not read.
 *
 * Requests of one connection are handled one after the other: the next begins when the answer before it has been handed to
 * the operating system, so a connection holds one answer at most. Node by itself dispatches all requests of a packet at
 * once, up to some thousands, and keeps all their answers.
 * - More than {@link MAX_PIPELINED} requests wait on a connection: those are answered, the others are not handled, and the
 *   connection closes.
 * - An answer is not read in time: the connection closes. The time grows with the size of the answer.
 * - All answers together exceed the limit: the connections close whose clients have been reading for longest.
 */
export class AnswerLimits {
  private readonly connections = new WeakMap<Socket, Connection>();
  /** Connections with an answer that is being sent, oldest first. */
  private readonly sending = new Set<Connection>();
  private timer: NodeJS.Timeout | undefined;
  private waiting = 0;
  private bytes = 0;
  private ended = 0;
  /** Connections that were closed since the start, by why. */
  readonly closed = { unread_answer: 0, pipelined: 0, waiting: 0 };

  constructor(
    private readonly settings: Pick<Settings, 'answerTimeoutMs' | 'maxAnswerBytes'>,
    private readonly logger: { warn(facts: object, message: string): void },
  ) {}

  /** How many requests wait on connections, and how many bytes of answers are being sent. */
  get load(): { readonly waiting: number; readonly bytes: number } {
    return { waiting: this.waiting, bytes: this.bytes };
  }

  /** Puts the limits before a server's handler. */
  guard(handler: RequestListener): RequestListener {
    return (request, response) => {
      this.admit(request.socket, { request, response, handle: () => handler(request, response) });
    };
  }

  /** Begins to account for the answers that Fastify sends, and to end those that are not read in time. */
  account(http: FastifyInstance): void {
    http.addHook('onSend', (_request, reply, payload, done) => {
      this.send(reply.raw, payload);
      done();
    });
    this.timer = setInterval(() => this.sweep(), SWEEP_MS).unref();
  }

  close(): void {
    clearInterval(this.timer);
  }

  /**
   * Calls back when every request that arrived whole on the connection has been answered: for answers that are written to
   * the socket itself. Never, if the connection closes before that. A request that arrived in part is not handled any more.
   */
  whenAnswered(socket: Socket, callback: () => void): void {
    const connection = this.connections.get(socket);
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
    for (const connection of this.sending) if (nowMs >= connection.deadline) this.end(connection);
    if (this.ended === 0) return;
    this.logger.warn({ connections: this.ended }, 'closed connections that did not read their answers');
    this.ended = 0;
  }

  private admit(socket: Socket, request: Waiting): void {
    const connection = this.connections.get(socket) ?? this.open(socket);
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
      socket,
      current: undefined,
      waiting: [],
      refused: 0,
      onAnswered: undefined,
      bytes: 0,
      deadline: 0,
    };
    this.connections.set(socket, connection);
    socket.once('close', () => this.forget(connection));
    return connection;
  }

  private handle(connection: Connection, request: Waiting): void {
    const { response, handle } = request;
    connection.current = request;
    response.once('close', () => this.goOn(connection));
    // Tells the client that nothing after this is answered.
    if (connection.refused > 0 && connection.waiting.length === 0) response.shouldKeepAlive = false;
    handle();
  }

  /** Goes on with the next request of a connection, or does what was to follow the last. */
  private goOn(connection: Connection): void {
    this.release(connection);
    connection.current = undefined;
    const { socket, waiting, onAnswered } = connection;
    // After an answer with `Connection: close` nobody gets another, so nothing more must be done.
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

  /** Accounts for an answer that begins to be sent. */
  private send(response: ServerResponse, payload: unknown): void {
    const connection = response.socket ? this.connections.get(response.socket) : undefined;
    if (connection?.current?.response !== response || isStream(payload)) return;
    // Buffers belong to the documentation, whose texts all its readers share.
    const bytes = typeof payload === 'string' ? Buffer.byteLength(payload) : 0;
    const size = Buffer.isBuffer(payload) ? payload.length : bytes;
    connection.bytes = bytes;
    connection.deadline = performance.now() + this.settings.answerTimeoutMs + size / MIN_PACE;
    this.bytes += bytes;
    this.sending.add(connection);
    for (const oldest of this.sending) {
      if (this.bytes <= this.settings.maxAnswerBytes) break;
      this.end(oldest);
    }
  }

  private end(connection: Connection): void {
    this.ended++;
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

const isStream = (payload: unknown): boolean =>
  typeof (payload as { pipe?: unknown } | null | undefined)?.pipe === 'function';

/** Drops what else arrives on a connection, unread by the parser; what it has taken in already is parsed to its end. */
export function stopReading(socket: Socket): void {
  process.nextTick(() => {
    // Node's parser takes the bytes from the handle itself until somebody asks for them here.
    socket.on('data', ignore);
    socket.removeAllListeners('data');
    socket.on('data', ignore);
  });
}

const ignore = () => undefined;
