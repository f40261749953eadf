import { randomBytes } from 'node:crypto';
import { closeSync, constants, fstatSync, openSync, readFileSync, statSync } from 'node:fs';
import { Agent, request } from 'node:http';
import { createConnection, type NetConnectOpts } from 'node:net';
import { CHALLENGE_HEADER, isProof, PROOF_HEADER, type ServerFile } from '../http/server-proof';
import { databaseIdentity, type Settings, serverFile } from '../settings';
import { EXIT, Failure } from './failure';

/** How long a server may take to prove itself, in milliseconds. */
const PROOF_TIMEOUT_MS = 5_000;
/** More than this is no answer to a challenge. */
const MAX_PROOF_BYTES = 64 * 1024;

/** An answer with the address that it came from. */
export interface LocalAnswer {
  readonly status: number;
  readonly headers: Readonly<Record<string, string | string[] | undefined>>;
  readonly text: string;
  readonly remoteAddress: string | undefined;
  readonly remotePort: number | undefined;
}

/** What was sent, and how long it may take. */
export interface LocalRequest {
  readonly method: string;
  readonly path: string;
  readonly headers?: Record<string, string>;
  readonly body?: string;
  readonly timeoutMs: number;
  readonly maxBytes?: number;
}

/**
 * Reads what the server of this database left for the command line of its machine.
 * @returns undefined if there is no such file; `other` if a server of another database wrote it, which has its files under
 * the same names; `unknown` if it can't be told who did
 * @throws Failure it can't be trusted: another user wrote it, or could have
 */
export function readServerFile(
  settings: Pick<Settings, 'database'>,
): ServerFile | 'other' | 'unknown' | undefined {
  const path = serverFile(settings.database);
  let file: number;
  try {
    file = openSync(path, constants.O_RDONLY | constants.O_NOFOLLOW);
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException;
    if (code === 'ENOENT' || code === 'ENOTDIR') return undefined;
    const advice = code === 'EACCES' ? "; run this as the server's user" : '';
    throw new Failure(`The server's file ${path} can't be read (${code})${advice}.`, EXIT.misused);
  }
  try {
    const { uid, mode } = fstatSync(file);
    if ((mode & 0o077) !== 0 || !mayHaveWritten(settings, uid))
      throw new Failure(
        `The server's file ${path} is another user's, or open to others; nothing was sent anywhere.`,
        EXIT.misused,
      );
    const { url, pid, database, secret } = JSON.parse(readFileSync(file, 'utf8')) as Partial<ServerFile>;
    const isWhole = typeof url === 'string' && URL.parse(url)?.protocol === 'http:' && secret;
    if (!isWhole || typeof database !== 'string') return 'unknown';
    if (database !== databaseIdentity(settings.database)) return 'other';
    return { url, pid: Number(pid), database, secret };
  } catch (error) {
    if (error instanceof SyntaxError) return 'unknown';
    throw error;
  } finally {
    closeSync(file);
  }
}

/** This user or root wrote it, or, read by root, the owner of the database. */
function mayHaveWritten({ database }: Pick<Settings, 'database'>, owner: number): boolean {
  const own = process.getuid?.();
  if (own === undefined || owner === own || owner === 0) return true;
  if (own !== 0 || database.type !== 'sqlite') return false;
  return statSync(database.path, { throwIfNoEntry: false })?.uid === owner;
}

/** One connection and never a second one: what was proven of it holds for all that is sent on it. */
class OneConnection extends Agent {
  private opened = false;

  constructor() {
    super({ keepAlive: true, maxSockets: 1 });
  }

  override createConnection(options: object, callback?: (error: Error | null, stream: never) => void) {
    if (this.opened) {
      const closed: NodeJS.ErrnoException = new Error('the server closed the connection');
      closed.code = 'ECONNREFUSED';
      callback?.(closed, undefined as never);
      return undefined;
    }
    this.opened = true;
    return createConnection(options as NetConnectOpts);
  }
}

/** A connection to the server that wrote the file. */
export class ProvenConnection {
  private constructor(
    readonly url: string,
    private readonly agent: OneConnection,
  ) {}

  /**
   * Asks what listens there for proof that it wrote the file. No token is sent.
   * @returns `stranger` if something answers that can't give it
   * @throws an error of the system if nothing answers
   */
  static async open(url: string, { secret }: ServerFile): Promise<ProvenConnection | 'stranger'> {
    const connection = new ProvenConnection(url, new OneConnection());
    const challenge = randomBytes(32).toString('hex');
    let proven = false;
    try {
      const { headers, remoteAddress, remotePort } = await connection.send({
        method: 'GET',
        path: '/healthz',
        headers: { [CHALLENGE_HEADER]: challenge },
        timeoutMs: PROOF_TIMEOUT_MS,
        maxBytes: MAX_PROOF_BYTES,
      });
      proven = isProof(String(headers[PROOF_HEADER] ?? ''), secret, challenge, remoteAddress, remotePort);
      return proven ? connection : 'stranger';
    } finally {
      if (!proven) connection.close();
    }
  }

  /** @throws an error of the system, `TimeoutError`, or what a program that speaks no HTTP causes */
  send({ method, path, headers, body, timeoutMs, maxBytes }: LocalRequest): Promise<LocalAnswer> {
    return new Promise((resolve, reject) => {
      const signal = AbortSignal.timeout(timeoutMs);
      const failed = (error: Error) => reject(signal.aborted ? signal.reason : error);
      const sent = request(
        new URL(this.url + path),
        {
          method,
          agent: this.agent,
          signal,
          headers: {
            ...headers,
            ...(body === undefined ? {} : { 'content-length': Buffer.byteLength(body) }),
          },
        },
        (response) => {
          const { remoteAddress, remotePort } = response.socket;
          const chunks: Buffer[] = [];
          let bytes = 0;
          response.on('data', (chunk: Buffer) => {
            bytes += chunk.length;
            if (maxBytes !== undefined && bytes > maxBytes) response.destroy(new Error('too long an answer'));
            chunks.push(chunk);
          });
          response.on('error', failed);
          response.on('end', () =>
            resolve({
              status: response.statusCode as number,
              headers: response.headers,
              text: Buffer.concat(chunks).toString('utf8'),
              remoteAddress,
              remotePort,
            }),
          );
        },
      );
      sent.on('error', failed);
      sent.end(body);
    });
  }

  close(): void {
    this.agent.destroy();
  }
}
