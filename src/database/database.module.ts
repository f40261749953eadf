import { type DynamicModule, Global, Module } from '@nestjs/common';
import { TypeOrmModule } from '@nestjs/typeorm';
import type { DataSource } from 'typeorm';
import { Database } from './database';
import { Idempotency } from './idempotency';

/**
 * Provides the {@link Database} and {@link Idempotency}. TypeORM's injectable `DataSource` is the read-only one, so
 * that an injected repository can't bypass the write queue.
 */
@Global()
@Module({})
export class DatabaseModule {
  /** @param database an open database; the caller closes it, after the application */
  static forRoot(database: Database): DynamicModule {
    return {
      module: DatabaseModule,
      imports: [
        TypeOrmModule.forRootAsync({
          useFactory: () => database.source.options,
          dataSourceFactory: () => Promise.resolve(database.source as DataSource),
        }),
      ],
      providers: [{ provide: Database, useValue: database }, Idempotency],
      exports: [Database, Idempotency],
    };
  }
}
