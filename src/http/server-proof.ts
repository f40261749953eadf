import { createHmac, randomBytes, timingSafeEqual } from 'node:crypto';
import { readFileSync, rmSync } from 'node:fs';
import type { AddressInfo, Socket } from 'node:net';
import type { FastifyInstance } from 'fastify';
import { writePrivately } from '../database/private-file';

/** The request header of a challenge to `/healthz`: 32 random bytes in hex. */
export const CHALLENGE_HEADER = 'x-control-plane-challenge';
/** The answer's header: the HMAC of the challenge and of the address that the client reached. */
export const PROOF_HEADER = 'x-control-plane-proof';

/** The file that a running server writes beside its database, for the command line of the same machine. */
export interface ServerFile {
  /** Where it listens. */
  readonly url: string;
  readonly pid: number;
  /** The database that it serves, by `databaseIdentity`. */
  readonly database: string;
  /** Random at each start; everyone who may read the file knows it. */
  readonly secret: string;
}

type Reached = Pick<Socket, 'localAddress' | 'localPort'>;

const hmac = (secret: string, challenge: string, address = '', port = 0): Buffer =>
  createHmac('sha256', secret)
    // On a dual-stack socket an IPv4 client is ::ffff:192.0.2.1 on one side only.
    .update(`${challenge}\n${address.replace(/^::ffff:/i, '')}\n${port}`)
    .digest();

/**
 * Whether an answer came from the process that wrote the file. The address is part of the proof, so that another program
 * can't relay the challenge to the server and the answer back.
 * @param address the remote address of the client's socket
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
 * Lets the command line find the server and verify it before it sends a token: another program may have taken the port.
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

  /** Writes the file, readable only by its owner. Call it when the server listens. @throws Error it can't be written */
  publish(path: string, database: string): void {
    const { address, port, family } = this.http.server.address() as AddressInfo;
    const host = address === '0.0.0.0' ? '127.0.0.1' : address === '::' ? '::1' : address;
    const url = `http://${family === 'IPv6' ? `[${host}]` : host}:${port}`;
    const file: ServerFile = { url, pid: process.pid, database, secret: this.secret };
    writePrivately(path, `${JSON.stringify(file)}\n`);
    this.path = path;
  }

  /** Removes the file, unless another server has replaced it. */
  unpublish(): void {
    if (this.path === undefined) return;
    try {
      if (readFileSync(this.path, 'utf8').includes(this.secret)) rmSync(this.path, { force: true });
    } catch {
      // Missing is fine. A file that stays proves nothing without this process.
    }
    this.path = undefined;
  }
}
