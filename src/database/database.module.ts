import { type DynamicModule, Global, Module } from '@nestjs/common';
import { TypeOrmModule } from '@nestjs/typeorm';
import type { DataSource } from 'typeorm';
import { Database } from './database';
import { Idempotency } from './idempotency';

/**
 * Gives the application its {@link Database}, and what remembers repeated calls in it. TypeORM's injectable `DataSource` is the reading side, so a repository
 * that somebody injects can't write past the door.
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
