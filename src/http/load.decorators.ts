import { SetMetadata } from '@nestjs/common';
import type { FastifyRequest } from 'fastify';
import { declarationOf } from './route-declaration';

export const SHED_FIRST = Symbol('shed-first');
export const BULK_WRITE = Symbol('bulk-write');

/** Refuses this route first under overload, because it starts work that the others finish. */
export const ShedFirst = () => SetMetadata(SHED_FIRST, true);

/**
 * Refuses this route with 503 while the database's disk is nearly full. It stores much data that can be sent again later, and
 * the remaining space is for operators in an emergency.
 */
export const BulkWrite = () => SetMetadata(BULK_WRITE, true);

/** Whether the request's route has `@BulkWrite()`. */
export const isBulkWrite = (request: FastifyRequest): boolean => declarationOf(request)?.bulkWrite === true;

/** Whether the request's route has `@ShedFirst()`. */
export const isShedFirst = (request: FastifyRequest): boolean => declarationOf(request)?.shedFirst === true;
