import { randomBytes } from 'node:crypto';
import { closeSync, constants, fstatSync, openSync, readFileSync, statSync } from 'node:fs';
import { Agent, request } from 'node:http';
import { createConnection, type NetConnectOpts } from 'node:net';
import { CHALLENGE_HEADER, isProof, PROOF_HEADER, type ServerFile } from '../http/server-proof';
import { databaseIdentity, type Settings, serverFile } from '../settings';
import { CommandError, EXIT } from './command-error';

/** How long a server may take to prove itself, in ms. */
const PROOF_TIMEOUT_MS = 5_000;
/** An answer to a challenge is never larger, in bytes. */
const MAX_PROOF_BYTES = 64 * 1024;

/** An answer, with the address that it came from. */
export interface LocalAnswer {
  readonly status: number;
  readonly headers: Readonly<Record<string, string | string[] | undefined>>;
  readonly text: string;
  readonly remoteAddress: string | undefined;
  readonly remotePort: number | undefined;
}

/** A request, and how long its answer may take. */
export interface LocalRequest {
  readonly method: string;
  readonly path: string;
  readonly headers?: Record<string, string>;
  readonly body?: string;
  readonly timeoutMs: number;
  readonly maxBytes?: number;
}

/**
 * Reads the file that the database's server writes for the command line of the same machine.
 * @returns undefined if there is no file; `other` if the server of another database wrote it, since two databases can share
 * a file name; `unknown` if it does not say who wrote it
 * @throws CommandError the file can't be trusted: another user wrote it, or could have written it
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
    throw new CommandError(`The server's file ${path} can't be read (${code})${advice}.`, EXIT.usage);
  }
  try {
    const { uid, mode } = fstatSync(file);
    if ((mode & 0o077) !== 0 || !isTrustedOwner(settings, uid))
      throw new CommandError(
        `The server's file ${path} is another user's, or open to others; nothing was sent anywhere.`,
        EXIT.usage,
      );
    const { url, pid, database, secret } = JSON.parse(readFileSync(file, 'utf8')) as Partial<ServerFile>;
    const isComplete = typeof url === 'string' && URL.parse(url)?.protocol === 'http:' && secret;
    if (!isComplete || typeof database !== 'string') return 'unknown';
    if (database !== databaseIdentity(settings.database)) return 'other';
    return { url, pid: Number(pid), database, secret };
  } catch (error) {
    if (error instanceof SyntaxError) return 'unknown';
    throw error;
  } finally {
    closeSync(file);
  }
}

/** Whether the file's owner is trusted: this user, root, or for root the owner of the database. */
function isTrustedOwner({ database }: Pick<Settings, 'database'>, owner: number): boolean {
  const own = process.getuid?.();
  if (own === undefined || owner === own || owner === 0) return true;
  if (own !== 0 || database.type !== 'sqlite') return false;
  return statSync(database.path, { throwIfNoEntry: false })?.uid === owner;
}

/** Opens one connection and never a second: the proof is valid for this connection only. */
class SingleConnectionAgent extends Agent {
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

/** A connection to the server that has proven to have written the file. */
export class ProvenConnection {
  private constructor(
    readonly url: string,
    private readonly agent: SingleConnectionAgent,
  ) {}

  /**
   * Connects, and makes the other side prove that it wrote the file. No token is sent.
   * @returns `stranger` if the other side can't prove it
   * @throws Error with the system's code if nothing answers
   */
  static async open(url: string, { secret }: ServerFile): Promise<ProvenConnection | 'stranger'> {
    const connection = new ProvenConnection(url, new SingleConnectionAgent());
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

  /**
   * Sends a request.
   * @throws Error with the system's code, `TimeoutError`, or a parser's error if the other side does not speak HTTP
   */
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

  /** Closes the connection. */
  close(): void {
    this.agent.destroy();
  }
}
