import type { ServerResponse } from 'node:http';
import type { Socket } from 'node:net';
import { Inject, Injectable } from '@nestjs/common';
import type { FastifyInstance, FastifyRequest } from 'fastify';
import { fail } from '../errors';
import { SETTINGS, type Settings } from '../settings';

/**
 * Limits how many requests are handled at once. A request counts from when its body is complete until it is answered, so that
 * slow senders do not count; a claim that waits for work costs almost nothing and is counted separately.
 */
@Injectable()
export class InFlight {
  private readonly unanswered = new Set<ServerResponse>();
  private readonly connections = new Set<Socket>();
  private waiting = 0;

  constructor(
    @Inject(SETTINGS) private readonly settings: Pick<Settings, 'maxInFlight' | 'maxWaitingClaims'>,
  ) {}

  /** How many claims wait for work. */
  get waitingClaims(): number {
    return this.waiting;
  }

  /** How many requests are handled, without claims that wait. */
  get working(): number {
    return this.unanswered.size - this.waiting;
  }

  /** How many connections are open. */
  get connected(): number {
    return this.connections.size;
  }

  /** Refuses requests over the limit, before their body is read if possible. Exempt requests are never refused. */
  guard(http: FastifyInstance, exempt: (request: FastifyRequest) => boolean): void {
    const { unanswered, connections } = this;
    const check = (request: FastifyRequest) =>
      unanswered.size - this.waiting >= this.settings.maxInFlight && !exempt(request) ? tooMany() : undefined;
    // One function for all requests, not a closure for each.
    function leave(this: ServerResponse): void {
      unanswered.delete(this);
    }
    http.addHook('onRequest', (request, _reply, done) => done(check(request)));
    http.addHook('preValidation', (request, reply, done) => {
      // Checked again: many may have been admitted while their bodies arrived.
      const refusal = check(request);
      // A response that is closed already emits no `close`, and would be counted forever.
      if (!refusal && !reply.raw.destroyed) unanswered.add(reply.raw.on('close', leave));
      done(refusal);
    });
    http.server.on('connection', (socket: Socket) => {
      connections.add(socket.once('close', () => connections.delete(socket)));
    });
  }

  /** Counts a request as waiting instead of handled, until {@link endWait}. @throws ERR_UNAVAILABLE too many requests wait */
  beginWait(): void {
    if (this.waiting >= this.settings.maxWaitingClaims) throw tooMany();
    this.waiting++;
  }

  /** Counts a request that waited as handled again. */
  endWait(): void {
    this.waiting--;
  }

  /** Closes every connection without a request to answer: idle ones, and those whose request is still arriving. */
  hangUp(): void {
    const busy = new Set([...this.unanswered].map(({ socket }) => socket));
    for (const socket of this.connections) if (!busy.has(socket)) socket.destroy();
  }
}

const tooMany = () =>
  fail('ERR_UNAVAILABLE', { reason: 'in_flight' }, { retryAfterMs: 1_000 + Math.random() * 4_000 });
