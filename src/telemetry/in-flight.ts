import type { ServerResponse } from 'node:http';
import type { Socket } from 'node:net';
import { Inject, Injectable } from '@nestjs/common';
import type { FastifyInstance, FastifyRequest } from 'fastify';
import { fail } from '../errors';
import { SETTINGS, type Settings } from '../settings';

/**
 * Bounds how many requests are worked on at once. One counts from when its body is there until it is answered, so that
 * slow senders take nobody's place; a claim that waits for work costs next to nothing and counts apart.
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

  /** How many requests are worked on, without claims that wait. */
  get working(): number {
    return this.unanswered.size - this.waiting;
  }

  /** How many connections are open. */
  get connected(): number {
    return this.connections.size;
  }

  /** Refuses requests over the limit, where it can before their body is read; those that are exempt never. */
  guard(http: FastifyInstance, exempt: (request: FastifyRequest) => boolean): void {
    const { unanswered, connections } = this;
    const check = (request: FastifyRequest) =>
      unanswered.size - this.waiting >= this.settings.maxInFlight && !exempt(request) ? tooMany() : undefined;
    // One function for all: it is called for every request.
    function leave(this: ServerResponse): void {
      unanswered.delete(this);
    }
    http.addHook('onRequest', (request, _reply, done) => done(check(request)));
    http.addHook('preValidation', (request, reply, done) => {
      // Again, for many may have been let in while their bodies were on the way.
      const refusal = check(request);
      // Who hung up has closed already, and would be counted forever.
      if (!refusal && !reply.raw.destroyed) unanswered.add(reply.raw.once('close', leave));
      done(refusal);
    });
    http.server.on('connection', (socket: Socket) => {
      connections.add(socket.once('close', () => connections.delete(socket)));
    });
  }

  /**
   * Counts a request that is worked on as one that waits.
   * @returns what counts it as worked on again
   * @throws ERR_UNAVAILABLE too many wait already
   */
  wait(): () => void {
    if (this.waiting >= this.settings.maxWaitingClaims) throw tooMany();
    this.waiting++;
    return () => {
      this.waiting--;
    };
  }

  /** Ends every connection on which there is nothing to answer: the idle ones, and who is slow to say what it wants. */
  hangUp(): void {
    const busy = new Set([...this.unanswered].map(({ socket }) => socket));
    for (const socket of this.connections) if (!busy.has(socket)) socket.destroy();
  }
}

const tooMany = () =>
  fail('ERR_UNAVAILABLE', { reason: 'in_flight' }, { retryAfterMs: 1_000 + Math.random() * 4_000 });
