import { SetMetadata } from '@nestjs/common';
import type { FastifyRequest } from 'fastify';
import { declarationOf } from './route-declaration';

export const SHED_FIRST = Symbol('shed-first');
export const BULK_WRITE = Symbol('bulk-write');

/** Under overload this route is turned away before the others: it takes on work, they finish it. */
export const ShedFirst = () => SetMetadata(SHED_FIRST, true);

/**
 * While the database's disk is nearly full this route answers 503: it stores much that can be sent again, and what an
 * operator does in an emergency needs the room.
 */
export const BulkWrite = () => SetMetadata(BULK_WRITE, true);

/** Whether the route that a request goes to is marked so. */
export const isBulkWrite = (request: FastifyRequest): boolean => declarationOf(request)?.bulkWrite === true;

/** Whether the route that a request goes to is marked so. */
export const isShedFirst = (request: FastifyRequest): boolean => declarationOf(request)?.shedFirst === true;
