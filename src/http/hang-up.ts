import type { IncomingHttpHeaders, IncomingMessage, ServerResponse } from 'node:http';
import type { Socket } from 'node:net';

/** Whether the client has disconnected: Node sends no answer after the client has ended or reset its connection. */
export const hasHungUp = ({ socket }: IncomingMessage, response: ServerResponse): boolean =>
  response.destroyed || socket.destroyed || socket.readableEnded || socket.errored !== null;

/** Is told that a caller has disconnected. */
export interface HangUpListener {
  onHangUp(): void;
}

const NO_HEADERS: IncomingHttpHeaders = Object.freeze({});
/** The caller's trace, and its address behind a proxy. */
const KEPT_HEADERS = ['traceparent', 'x-forwarded-for'] as const;

/** Tells whether a caller has disconnected before it was answered. Smaller than an AbortSignal, which takes 1 KiB for each waiting claim. */
export class HangUpSignal {
  private isAborted = false;
  private waited = 0;
  private listener: HangUpListener | undefined;

  /** @param request whose caller may disconnect */
  constructor(private readonly request?: IncomingMessage) {}

  /** Whether the caller has disconnected. */
  get aborted(): boolean {
    return this.isAborted;
  }

  /** How long the request waited for work, in ms: this time does not count as its duration. */
  get waitedMs(): number {
    return this.waited;
  }

  /**
   * Tells the listener, once, if the caller disconnects. The request waits for work meanwhile, so its headers are dropped, except
   * those that its log line and its span are made from.
   */
  beginWait(listener: HangUpListener): void {
    this.listener = listener;
    if (!this.request) return;
    const kept = KEPT_HEADERS.filter((name) => this.request?.headers[name] !== undefined);
    this.request.headers =
      kept.length === 0
        ? NO_HEADERS
        : Object.fromEntries(kept.map((name) => [name, this.request?.headers[name]]));
    this.request.rawHeaders = [];
  }

  /** Ends the wait. @param ms how long it was */
  endWait(ms: number): void {
    this.listener = undefined;
    this.waited += ms;
  }

  /** Says that the caller has disconnected. */
  abort(): void {
    this.isAborted = true;
    this.listener?.onHangUp();
  }
}

/** The signal of the request that is handled on a connection, as a property of its socket and of its response. */
const SIGNAL = Symbol('hang-up');

interface Watched {
  [SIGNAL]?: HangUpSignal | undefined;
}

// One function for all connections and responses, not closures for each.
function onDisconnect(this: Watched): void {
  this[SIGNAL]?.abort();
}

function onClose(this: ServerResponse & Watched): void {
  const signal = this[SIGNAL];
  (this.req.socket as Watched)[SIGNAL] = undefined;
  if (!this.writableFinished) signal?.abort();
}

/** Watches whether the caller disconnects until it is answered. The requests of a connection are handled one after the other. */
export function watchHangUp(request: IncomingMessage, response: ServerResponse & Watched): HangUpSignal {
  const signal = new HangUpSignal(request);
  const socket: Socket & Watched = request.socket;
  // The caller may have disconnected while the guards ran: then no further event comes.
  if (hasHungUp(request, response)) {
    signal.abort();
    return signal;
  }
  // The end or reset of the connection comes some turns of the event loop before its close; after either, Node sends no answer.
  if (!(SIGNAL in socket)) socket.on('end', onDisconnect).on('error', onDisconnect);
  socket[SIGNAL] = signal;
  response[SIGNAL] = signal;
  response.on('close', onClose);
  return signal;
}

/** How long a request waited for work, in ms. */
export const waitedMs = ({ hangUp }: { hangUp?: HangUpSignal }): number => hangUp?.waitedMs ?? 0;
