import { createHmac, randomBytes, timingSafeEqual } from 'node:crypto';
import { readFileSync, rmSync } from 'node:fs';
import type { AddressInfo, Socket } from 'node:net';
import type { FastifyInstance } from 'fastify';
import { writePrivately } from '../database/private-file';

/** What a caller who wants proof sends to `/healthz`: 32 random bytes in hex. */
export const CHALLENGE_HEADER = 'x-control-plane-challenge';
/** What the server answers: the HMAC of the challenge and of the address that the caller reached. */
export const PROOF_HEADER = 'x-control-plane-proof';

/** What a running server leaves beside its database for the command line of the same machine. */
export interface ServerFile {
  /** Where it listens. */
  readonly url: string;
  readonly pid: number;
  /** Which database it has, by `databaseIdentity`. */
  readonly database: string;
  /** Made at each start and known to whoever may read the file. */
  readonly secret: string;
}

type Reached = Pick<Socket, 'localAddress' | 'localPort'>;

const hmac = (secret: string, challenge: string, address = '', port = 0): Buffer =>
  createHmac('sha256', secret)
    // An IPv4 caller of a socket for both families shows as ::ffff:192.0.2.1 on one side only.
    .update(`${challenge}\n${address.replace(/^::ffff:/i, '')}\n${port}`)
    .digest();

/**
 * Whether an answer was given by the process that wrote the file. The address is part of it, so that another program
 * can't pass the challenge on to the server and the answer back.
 * @param address the remote address of the caller's own socket
 */
export function isProof(
  proof: string,
  secret: string,
  challenge: string,
  address: string | undefined,
  port: number | undefined,
): boolean {
  const given = Buffer.from(proof, 'hex');
  const expected = hmac(secret, challenge, address, port);
  return given.length === expected.length && timingSafeEqual(given, expected);
}

/**
 * Lets the command line find the server and know it for what it is before it sends a token: another program may listen
 * on the port by now.
 */
export class ServerProof {
  private readonly secret = randomBytes(32).toString('base64url');
  private path: string | undefined;

  constructor(private readonly http: FastifyInstance) {
    http.addHook('onRequest', (request, reply, done) => {
      const challenge = request.headers[CHALLENGE_HEADER];
      if (typeof challenge === 'string' && /^[0-9a-f]{64}$/.test(challenge) && request.url === '/healthz') {
        const { localAddress, localPort }: Reached = request.raw.socket;
        reply.header(PROOF_HEADER, hmac(this.secret, challenge, localAddress, localPort).toString('hex'));
      }
      done();
    });
  }

  /** Writes the file, readable for its owner only. The server must listen by now. */
  publish(path: string, database: string): void {
    const { address, port, family } = this.http.server.address() as AddressInfo;
    const host = address === '0.0.0.0' ? '127.0.0.1' : address === '::' ? '::1' : address;
    const url = `http://${family === 'IPv6' ? `[${host}]` : host}:${port}`;
    const file: ServerFile = { url, pid: process.pid, database, secret: this.secret };
    writePrivately(path, `${JSON.stringify(file)}\n`);
    this.path = path;
  }

  /** Takes the file away, unless another server has written its own since. */
  withdraw(): void {
    if (this.path === undefined) return;
    try {
      if (readFileSync(this.path, 'utf8').includes(this.secret)) rmSync(this.path, { force: true });
    } catch {
      // It is gone, which is what was wanted; one that stays proves nothing without this process.
    }
    this.path = undefined;
  }
}
