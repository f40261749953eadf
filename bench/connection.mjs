// A connection that costs the load generator little: HTTP/1.1 written directly to a socket, for answers with a
// content-length, as this service sends them. Requests are pipelined: each is sent at once, even if earlier ones are
// unanswered.
import { connect } from 'node:net';
import { setTimeout as sleep } from 'node:timers/promises';

const HEAD_END = Buffer.from('\r\n\r\n');
const RETRY_MS = 100;
const MAX_RETRIES = 300;

/** Creates the text of a request. Texts that do not change can be created once. */
export function requestText(method, path, headers = {}, body = undefined) {
  let text = `${method} ${path} HTTP/1.1\r\nhost: 127.0.0.1\r\n`;
  for (const name in headers) text += `${name}: ${headers[name]}\r\n`;
  if (body === undefined) return `${text}\r\n`;
  return `${text}content-type: application/json\r\ncontent-length: ${Buffer.byteLength(body)}\r\n\r\n${body}`;
}

/** One keep-alive connection. It is opened with the first request, and again after the server closed it. */
export class Connection {
  #socket;
  #rest;
  #waiting = [];
  /** The number of times that it was opened. */
  opened = 0;

  /**
   * @param localAddress the source address, such as 127.0.0.2: one address has some 28,000 ports. By default the
   * system chooses
   */
  constructor(port, localAddress = undefined) {
    this.port = port;
    this.localAddress = localAddress;
  }

  get unanswered() {
    return this.#waiting.length;
  }

  /** Opens it in advance, if it is not open. @throws the server does not accept it */
  open() {
    if (this.#socket) return undefined;
    return new Promise((resolve, reject) => {
      const socket = this.#open();
      socket.once('connect', resolve).once('close', () => reject(new Error(`port ${this.port} is closed`)));
    });
  }

  /**
   * Sends a request. @param answered called once with the status and the body's bytes; with 0 if there is no answer
   */
  send(text, answered) {
    const socket = this.#socket ?? this.#open();
    this.#waiting.push(answered);
    socket.write(text);
  }

  /** Sends a request. @returns its status, and its body as text @throws there is no answer within the time */
  request(method, path, { body, headers, timeoutMs = 120_000 } = {}) {
    return new Promise((resolve, reject) => {
      const overdue = setTimeout(() => {
        reject(new Error(`${method} ${path}: no answer within ${timeoutMs} ms`));
        this.close();
      }, timeoutMs);
      this.send(
        requestText(method, path, headers, body === undefined ? undefined : JSON.stringify(body)),
        (status, bytes) => {
          clearTimeout(overdue);
          if (status === 0) reject(new Error(`${method} ${path}: the connection ended without an answer`));
          else resolve({ status, text: bytes.toString() });
        },
      );
    });
  }

  /**
   * Sends a JSON body. If the server is overloaded, sends it again after a pause, as agents do.
   * @returns the parsed answer
   * @throws its status is not 2xx
   */
  async post(path, body, headers) {
    let { status, text } = await this.request('POST', path, { body, headers });
    for (let retries = 0; status === 503 && retries < MAX_RETRIES; retries++) {
      await sleep(RETRY_MS);
      ({ status, text } = await this.request('POST', path, { body, headers }));
    }
    if (status < 200 || status > 299) throw new Error(`POST ${path}: ${status} ${text.slice(0, 300)}`);
    return JSON.parse(text);
  }

  close() {
    this.#socket?.destroy();
  }

  #open() {
    const socket = connect({ host: '127.0.0.1', port: this.port, localAddress: this.localAddress });
    socket.setNoDelay(true);
    this.#socket = socket;
    this.#rest = undefined;
    this.opened += 1;
    socket.on('data', (bytes) => this.#receive(bytes));
    // The close event handles failures.
    socket.on('error', () => undefined);
    socket.on('close', () => {
      if (this.#socket === socket) this.#socket = undefined;
      for (const answered of this.#waiting.splice(0)) answered(0);
    });
    return socket;
  }

  #receive(bytes) {
    const data = this.#rest ? Buffer.concat([this.#rest, bytes]) : bytes;
    let from = 0;
    while (from < data.length) {
      const headEnd = data.indexOf(HEAD_END, from);
      if (headEnd < 0) break;
      const head = data.latin1Slice(from, headEnd);
      const status = Number(head.slice(9, 12));
      const length = /\r\ncontent-length: *(\d+)/i.exec(head)?.[1];
      if (length === undefined && status !== 204 && status !== 304)
        throw new Error(`an answer without a content-length: ${head}`);
      const bodyEnd = headEnd + 4 + Number(length ?? 0);
      if (data.length < bodyEnd) break;
      // A server may answer 408 before it closes an idle connection.
      this.#waiting.shift()?.(status, data.subarray(headEnd + 4, bodyEnd));
      from = bodyEnd;
    }
    this.#rest = from < data.length ? data.subarray(from) : undefined;
  }
}
